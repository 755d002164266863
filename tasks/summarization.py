"""Summarization: CNN/DailyMail and XSum, `summarize: <article>`, scored by ROUGE.

`xsum` is the data set of the paper; its articles must be downloaded by hand (TensorFlow Datasets says how when it
prepares them). `gem_xsum` is downloaded automatically, but the GEM benchmark kept only about a ninth of XSum: its
scores are not comparable with the paper's.

Source: Hermann et al. 2015; Narayan et al. 2018; Gehrmann et al. 2021 (GEM); Raffel et al. 2020, Appendix D.14.
"""

import functools

import t5.data.preprocessors

from tasks import metrics
from tasks.text_to_text import add_task
from tasks.tfds_source import PreparedTfds, same_splits

# Task: data set, field of the article, field of the summary.
_DATA_SETS = {
    "cnn_dailymail": ("cnn_dailymail:3.4.0", "article", "highlights"),
    "xsum": ("xsum:1.1.0", "document", "summary"),
    "gem_xsum": ("gem/xsum:1.1.0", "document", "target"),
}
for _name, (_data_set, _article, _summary) in _DATA_SETS.items():
    add_task(
        _name,
        source=PreparedTfds(_data_set, same_splits("train", "validation", "test")),
        preprocessors=[functools.partial(t5.data.preprocessors.summarize, article_key=_article, summary_key=_summary)],
        metrics=[metrics.rouge],
    )
