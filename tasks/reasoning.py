"""Reasoning: ANLI (three rounds), ARC (easy, challenge) and Winogrande (five training sizes), scored by accuracy.

Neither T5 nor the paper publishes a text format for these. They are written here as T5 writes GLUE and SuperGLUE: the
name, then every field in alphabetical order, and the label as a word. ANLI follows MNLI; ARC and Winogrande follow
COPA, whose labels are `choice1` and `choice2`:

    anli hypothesis: <hypothesis> premise: <context>                                          -> entailment
    arc choice1: <text> choice2: <text> choice3: <text> choice4: <text> question: <question>   -> choice3
    winogrande option1: <text> option2: <text> sentence: <sentence with a _>                  -> option2

Source: Nie et al. 2020; Clark et al. 2018; Sakaguchi et al. 2020; Raffel et al. 2020, Appendix D.
"""

import functools

import seqio
import t5.data.postprocessors
import t5.data.preprocessors
import tensorflow as tf

from tasks import metrics
from tasks.text_to_text import Preprocessor, add_task
from tasks.tfds_source import PreparedTfds, same_splits

_ANLI_CLASSES = ("entailment", "neutral", "contradiction")
# Most ARC questions have four choices, some three or five.
_ARC_CLASSES = ("choice1", "choice2", "choice3", "choice4", "choice5")
_WINOGRANDE_CLASSES = ("option1", "option2")


def glue_form(prefix: str, fields: dict[str, str], label: str, classes: tuple[str, ...]) -> Preprocessor:
    """Makes a preprocessor that writes an example in T5's text format for GLUE.

    Args:
      prefix: name of the benchmark.
      fields: name in the text to field of the raw example; the text has them in alphabetical order.
      label: field of the class, an integer; -1 if hidden, which is written as <unk>.
      classes: the word for each class.

    Returns:
      A preprocessor: {field: string, label: int64} to {"inputs": string, "targets": string}.

    Source: Raffel et al. 2020, Appendix D.
    """

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        dataset = t5.data.preprocessors.rekey(dataset, key_map={**fields, "label": label})
        return t5.data.preprocessors.glue(dataset, prefix, list(classes), id_key=None)

    return preprocess


@seqio.map_over_dataset
def arc(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Writes a question with three to five choices: {"question", "choices": {"text", "label": [n]}, "answerKey"}."""
    texts, letters = example["choices"]["text"], example["choices"]["label"]
    names = tf.constant(_ARC_CLASSES)[: tf.size(texts)]
    choices = tf.strings.reduce_join(tf.strings.join([names, ": ", texts]), separator=" ")
    return {
        "inputs": tf.strings.join(["arc", choices, "question:", example["question"]], separator=" "),
        "targets": tf.boolean_mask(names, letters == example["answerKey"])[0],
    }


def _add(
    name: str, data_set: str, splits: dict[str, str], preprocessor: Preprocessor, classes: tuple[str, ...]
) -> None:
    add_task(
        name,
        source=PreparedTfds(data_set, splits),
        preprocessors=[preprocessor],
        metrics=[metrics.accuracy],
        postprocessor=functools.partial(t5.data.postprocessors.string_label_to_class_id, label_classes=classes),
    )


for _round in ("r1", "r2", "r3"):
    _add(
        f"anli_{_round}",
        f"anli/{_round}:0.1.0",
        same_splits("train", "validation", "test"),
        glue_form("anli", {"premise": "context", "hypothesis": "hypothesis"}, "label", _ANLI_CLASSES),
        _ANLI_CLASSES,
    )

for _name, _config in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")):
    _add(_name, f"ai2_arc/{_config}:1.0.0", same_splits("train", "validation", "test"), arc, _ARC_CLASSES)

for _size in ("xs", "s", "m", "l", "xl"):
    _add(
        f"winogrande_{_size}",
        "winogrande:1.2.0",
        {"train": f"train_{_size}", "validation": "validation", "test": "test"},
        glue_form(
            "winogrande",
            {"option1": "option1", "option2": "option2", "sentence": "sentence"},
            "label",
            _WINOGRANDE_CLASSES,
        ),
        _WINOGRANDE_CLASSES,
    )
