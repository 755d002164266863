"""SuperGLUE: each task, and their mixture in proportion to their sizes; text, labels and metrics are T5's.

WSC is cast as coreference: the model names what the starred pronoun refers to. It trains on the examples whose label is
true (`super_glue_wsc_simple_train`) and on Definite Pronoun Resolution (`dpr_simple`), and is scored on all
(`super_glue_wsc_simple_eval`). The data set is `wsc.fixed`; t5's metrics have no entry of that name.

Source: Wang et al. 2019; Rahman and Ng 2012 (DPR); Raffel et al. 2020, Sec. 2.3, 2.4 and Appendix D.
"""

import functools

import seqio
import t5.data.glue_utils
import t5.data.postprocessors
import t5.data.preprocessors
import tensorflow_datasets as tfds

from tasks import metrics
from tasks.glue import unversioned
from tasks.text_to_text import add_task
from tasks.tfds_source import PreparedTfds, same_splits

_VERSION = "1.0.2"
_METRICS = {
    "boolq": [metrics.accuracy],
    "cb": [metrics.mean_3class_f1, metrics.accuracy],
    "copa": [metrics.accuracy],
    "multirc": [metrics.multirc_f1, metrics.multirc_exact_match],
    "record": [metrics.record],
    "rte": [metrics.accuracy],
    "wic": [metrics.accuracy],
    "axb": [],
    "axg": [],
}


def _preprocessors(config: tfds.core.BuilderConfig) -> list:
    to_text = t5.data.glue_utils.get_glue_text_preprocessor(config)
    if config.name != "axb":
        return [to_text]
    # The diagnostics are RTE with other field names.
    keys = {"premise": "sentence1", "hypothesis": "sentence2", "label": "label", "idx": "idx"}
    return [functools.partial(t5.data.preprocessors.rekey, key_map=keys), to_text]


for _name, _metrics in _METRICS.items():
    _config = tfds.text.super_glue.SuperGlue.builder_configs[_name]
    add_task(
        f"super_glue_{_name}",
        source=PreparedTfds(
            f"super_glue/{_name}:{_VERSION}",
            same_splits(*(["train", "validation", "test"] if _metrics else ["test"])),
        ),
        preprocessors=_preprocessors(_config),
        metrics=_metrics,
        postprocessor=t5.data.glue_utils.get_glue_postprocess_fn(_config),
    )

add_task(
    "super_glue_wsc_simple_train",
    source=PreparedTfds(f"super_glue/wsc.fixed:{_VERSION}", same_splits("train")),
    preprocessors=[functools.partial(t5.data.preprocessors.wsc_simple, correct_referent_only=True)],
)
add_task(
    "super_glue_wsc_simple_eval",
    source=PreparedTfds(f"super_glue/wsc.fixed:{_VERSION}", same_splits("validation", "test")),
    preprocessors=[t5.data.preprocessors.wsc_simple],
    metrics=[metrics.accuracy],
    postprocessor=t5.data.postprocessors.wsc_simple,
)
add_task(
    "dpr_simple",
    source=PreparedTfds("definite_pronoun_resolution:1.1.0", same_splits("train", "test")),
    preprocessors=[t5.data.preprocessors.definite_pronoun_resolution_simple],
    metrics=[metrics.accuracy],
)

seqio.MixtureRegistry.add(
    "super_glue",
    [(unversioned(name), rate) for name, rate in t5.data.glue_utils.get_super_glue_weight_mapping().items()],
)
