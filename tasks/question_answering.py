"""Question answering: SQuAD with its context; NaturalQuestions, WebQuestions and TriviaQA closed book.

SQuAD's text is T5's: `question: <question> context: <context>`, with spaces around punctuation. The metric takes the
best of all reference answers; t5's task `squad_v010` lacks the postprocessor for that and scores perfect answers 0.

Closed book, the input is the question alone, `nq question: <question>` (`wq`, `trivia_qa`), and the target the first
answer. There are two tasks for each data set, as in Roberts et al. 2020: `natural_questions_open` holds out a tenth of
the training set for tuning, `natural_questions_open_test` trains on all of it. The answers of TriviaQA's test set are
hidden, so that its `_test` task has nothing to score.

Source: Raffel et al. 2020, Appendix D.15; Roberts et al. 2020, Sec. 3 (splits and prefixes as in its published code).
"""

import seqio
import t5.data.postprocessors
import t5.data.preprocessors
import tensorflow as tf

from tasks import metrics
from tasks.text_to_text import Preprocessor, add_task
from tasks.tfds_source import PreparedTfds, same_splits


def closed_book(prefix: str, answers: str) -> Preprocessor:
    """Makes a closed-book question of an example.

    Args:
      prefix: of the question.
      answers: name of the field with the reference answers, [n] strings; the first is the target.

    Returns:
      A preprocessor: {"question": string, answers: [n] string} to {"inputs": string, "targets": string,
      "answers": [n] string}; if n is 0, as in hidden test sets, the target is <unk>.

    Source: Roberts et al. 2020, Sec. 3.
    """

    @seqio.map_over_dataset
    def preprocess(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {
            "inputs": tf.strings.join([prefix, example["question"]]),
            "targets": tf.concat([example[answers], ["<unk>"]], axis=0)[0],
            "answers": example[answers],
        }

    return preprocess


@seqio.map_over_dataset
def trivia_qa(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Makes a closed-book question of TriviaQA: the target is the answer's canonical form, all aliases are correct."""
    return {
        "inputs": tf.strings.join(["trivia_qa question: ", example["question"]]),
        "targets": example["answer"]["value"],
        "answers": example["answer"]["aliases"],
    }


add_task(
    "squad",
    source=PreparedTfds("squad/v1.1:3.0.0", same_splits("train", "validation")),
    preprocessors=[t5.data.preprocessors.squad],
    metrics=[metrics.squad],
    postprocessor=t5.data.postprocessors.qa,
)

_NATURAL_QUESTIONS = "natural_questions_open:1.0.0"
_WEB_QUESTIONS = "web_questions:1.0.0"
_TRIVIA_QA = "trivia_qa/unfiltered.nocontext:1.1.0"
# Task: data set, splits, text, metric. The slices are those of the published code, which took them from ORQA.
_CLOSED_BOOK = {
    "natural_questions_open": (
        _NATURAL_QUESTIONS,
        {"train": "train[:79168]", "validation": "train[79168:]", "test": "validation"},
        closed_book("nq question: ", "answer"),
        metrics.squad,
    ),
    "natural_questions_open_test": (
        _NATURAL_QUESTIONS,
        same_splits("train", "validation"),
        closed_book("nq question: ", "answer"),
        metrics.squad,
    ),
    "web_questions_open": (
        _WEB_QUESTIONS,
        {"train": "train[:3417]", "validation": "train[3417:]", "test": "test"},
        closed_book("wq question: ", "answers"),
        metrics.squad,
    ),
    "web_questions_open_test": (
        _WEB_QUESTIONS,
        {"train": "train", "validation": "test"},
        closed_book("wq question: ", "answers"),
        metrics.squad,
    ),
    "trivia_qa_open": (
        _TRIVIA_QA,
        {"train": "train[:78785]", "validation": "train[78785:]", "test": "validation"},
        trivia_qa,
        metrics.trivia_qa,
    ),
    "trivia_qa_open_test": (
        _TRIVIA_QA,
        {"train": "train+validation", "test": "test"},
        trivia_qa,
        metrics.trivia_qa,
    ),
}
for _name, (_data_set, _splits, _preprocessor, _metric) in _CLOSED_BOOK.items():
    add_task(
        _name,
        source=PreparedTfds(_data_set, _splits),
        preprocessors=[_preprocessor],
        metrics=[_metric],
        postprocessor=t5.data.postprocessors.qa,
    )

# In proportion to the sizes of the training splits above.
seqio.MixtureRegistry.add(
    "closed_book_qa",
    [("natural_questions_open", 79_168), ("web_questions_open", 3_417), ("trivia_qa_open", 78_785)],
)
seqio.MixtureRegistry.add(
    "closed_book_qa_test",
    [("natural_questions_open_test", 87_925), ("web_questions_open_test", 3_778), ("trivia_qa_open_test", 98_935)],
)
