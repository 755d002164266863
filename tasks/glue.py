"""GLUE: each task, and their mixture in proportion to their sizes; text, labels and metrics are T5's.

`glue` trains on eight tasks and includes the evaluation sets of MNLI and the diagnostics at rate 0, as t5's
`glue_v002_proportional` does. WNLI is left out, and is scored as coreference (`glue_wnli_simple_eval`), which a model
learns from SuperGLUE.

Source: Wang et al. 2018; Raffel et al. 2020, Sec. 2.3 and Appendix D.
"""

import re

import seqio
import t5.data.glue_utils
import t5.data.postprocessors
import t5.data.preprocessors
import tensorflow_datasets as tfds

from tasks import metrics
from tasks.text_to_text import add_task
from tasks.tfds_source import PreparedTfds, same_splits

_VERSION = "2.0.0"
_SPLITS = {
    "mnli": same_splits("train"),
    "mnli_matched": same_splits("validation", "test"),
    "mnli_mismatched": same_splits("validation", "test"),
    "ax": same_splits("test"),
}
_METRICS = {
    "cola": [metrics.matthews],
    "mrpc": [metrics.f1, metrics.accuracy],
    "qqp": [metrics.f1, metrics.accuracy],
    "stsb": [metrics.pearson, metrics.spearman],
    # MNLI is scored as `glue_mnli_matched` and `glue_mnli_mismatched`.
    "mnli": [],
    "ax": [],
}


def unversioned(name: str) -> str:
    """Returns our name of one of t5's tasks: `glue_cola` for `glue_cola_v002`."""
    return re.sub(r"_v\d+", "", name)


for _config in tfds.text.glue.Glue.builder_configs.values():
    add_task(
        f"glue_{_config.name}",
        source=PreparedTfds(
            f"glue/{_config.name}:{_VERSION}",
            _SPLITS.get(_config.name, same_splits("train", "validation", "test")),
        ),
        preprocessors=[t5.data.glue_utils.get_glue_text_preprocessor(_config)],
        metrics=_METRICS.get(_config.name, [metrics.accuracy]),
        postprocessor=(
            metrics.similarity if _config.name == "stsb" else t5.data.glue_utils.get_glue_postprocess_fn(_config)
        ),
    )

add_task(
    "glue_wnli_simple_eval",
    source=PreparedTfds(f"glue/wnli:{_VERSION}", same_splits("validation", "test")),
    preprocessors=[t5.data.preprocessors.wnli_simple],
    metrics=[metrics.accuracy],
    postprocessor=t5.data.postprocessors.wsc_simple,
)

seqio.MixtureRegistry.add(
    "glue",
    [(unversioned(name), rate) for name, rate in t5.data.glue_utils.get_glue_weight_mapping().items()],
)
