"""Every task over TensorFlow Datasets: text, lengths, and scores of perfect and of useless predictions."""

import functools
import json

import numpy as np
import pytest
import seqio
import t5.data.mixtures  # noqa: F401
import tensorflow as tf

import tasks.all  # noqa: F401
from tasks.tfds_source import PreparedTfds, data_set_of
from tests.support import tiny_tfds

NAMES = sorted(
    name
    for name, task in ((name, seqio.TaskRegistry.get(name)) for name in seqio.TaskRegistry.names())
    if isinstance(task.source, PreparedTfds) and data_set_of(task) in tiny_tfds.DATA_SETS
)
LENGTHS = {"inputs": 48, "targets": 12}
MNLI = (
    "mnli hypothesis: The St. Louis Cardinals have always won. premise: yeah well losing is i mean i'm i'm originally "
    "from Saint Louis and Saint Louis Cardinals when they were there were uh a mostly a losing team but"
)
ARC = "Which property of a mineral can be determined just by looking at it?"
# The published text (Raffel et al. 2020, Appendix D, as t5 0.9.4 writes it; Roberts et al. 2020), then our own.
TEXTS = {
    "glue_cola": ("cola sentence: John made Bill master of himself.", "acceptable"),
    "glue_sst2": (
        "sst2 sentence: it confirms fincher 's status as a film maker who artfully bends technical know-how to the "
        "service of psychological insight . ",
        "positive",
    ),
    "glue_mrpc": (
        "mrpc sentence1: We acted because we saw the existing evidence in a new light , through the prism of our "
        'experience on 11 September , " Rumsfeld said . sentence2: Rather , the US acted because the administration '
        'saw " existing evidence in a new light , through the prism of our experience on September 11 " .',
        "equivalent",
    ),
    "glue_qqp": (
        "qqp question1: What attributes would have made you highly desirable in ancient Rome? question2: How I GET "
        "OPPERTINUTY TO JOIN IT COMPANY AS A FRESHER?",
        "not_duplicate",
    ),
    "glue_stsb": (
        "stsb sentence1: Representatives for Puretunes could not immediately be reached for comment Wednesday. "
        "sentence2: Puretunes representatives could not be located Thursday to comment on the suit.",
        "3.2",
    ),
    "glue_mnli": (MNLI, "contradiction"),
    "glue_mnli_matched": (MNLI, "contradiction"),
    "glue_mnli_mismatched": (MNLI, "contradiction"),
    "glue_ax": (MNLI, "<unk>"),
    "glue_qnli": (
        "qnli question: Where did Jebe die? sentence: Genghis Khan recalled Subutai back to Mongolia soon afterwards, "
        "and Jebe died on the road back to Samarkand.",
        "entailment",
    ),
    "glue_rte": (
        "rte sentence1: A smaller proportion of Yugoslavia's Italians were settled in Slovenia (at the 1991 national "
        "census, some 3078). sentence2: Slovenia has 3,078 inhabitants.",
        "not_entailment",
    ),
    "glue_wnli": ("wnli sentence1: The fish ate the worm. It was tasty. sentence2: The worm was tasty.", "entailment"),
    "glue_wnli_simple_eval": ("wsc: The fish ate the worm. *It* was tasty.", "The worm"),
    "super_glue_boolq": ("boolq passage: Sky -- The sky is blue. question: is the sky blue", "True"),
    "super_glue_cb": (
        "cb hypothesis: Valence was helping premise: Valence the void-brain, Valence the virtuous valet. Why couldn't "
        "the figger choose his own portion of titanic anatomy to shaft? Did he think he was helping?",
        "contradiction",
    ),
    "super_glue_copa": (
        "copa choice1: Many citizens relocated to the capitol. choice2: Many citizens took refuge in other "
        "territories. premise: Political violence broke out in the nation. question: effect",
        "choice2",
    ),
    "super_glue_multirc": (
        "multirc question: Why was Joey surprised the morning he woke up for breakfast? answer: There was a T-REX in "
        "his garden paragraph: Sent 1: Once upon a time, there was a squirrel named Joey. Sent 2: Joey loved to go "
        "outside. ",
        "True",
    ),
    "super_glue_record": (
        "record query: If the reports are true, @placeholder would be the first. entities: Hitler, Europe, Germany "
        "passage: A plan was found. It was of Europe. It was old",
        "Hitler",
    ),
    "super_glue_rte": (
        "rte hypothesis: Christopher Reeve had an accident. premise: A man called Christopher Reeve is an actor.",
        "not_entailment",
    ),
    "super_glue_axb": ("rte hypothesis: A tree fell. premise: A tall tree fell.", "<unk>"),
    "super_glue_axg": ("rte hypothesis: A tree fell. premise: A tall tree fell.", "<unk>"),
    "super_glue_wic": (
        "wic sentence1: It was the deliberation of his act that was insulting . sentence2: The deliberations of the "
        "jury . word: deliberation",
        "False",
    ),
    **dict.fromkeys(
        ("super_glue_wsc_simple_train", "super_glue_wsc_simple_eval"),
        (
            "wsc: The stable was very roomy, with four good stalls; a large swinging window opened into the yard , "
            "which made *it* pleasant and airy.",
            "stable",
        ),
    ),
    "dpr_simple": ("wsc: Bob asked Tom if *he* can lend some money.", "Tom"),
    "squad": (
        "question: What does increased oxygen concentrations in the patient ' s lungs displace ? context: Increased O "
        "2 concentration in the lungs helps to displace carbon monoxide from the heme group . ",
        "carbon monoxide",
    ),
    **dict.fromkeys(
        ("cnn_dailymail", "xsum", "gem_xsum"),
        (
            "summarize: marouane fellaini and adnan januzaj continue to show the world they are not just teammates but "
            "best mates .",
            "the belgian duo took to the dance floor on monday night with some friends .",
        ),
    ),
    **dict.fromkeys(
        ("natural_questions_open", "natural_questions_open_test"),
        ("nq question: who is the richest club in the championship", "Aston Villa"),
    ),
    **dict.fromkeys(
        ("web_questions_open", "web_questions_open_test"),
        ("wq question: what is the name of justin bieber brother?", "Jazmyn"),
    ),
    **dict.fromkeys(
        ("trivia_qa_open", "trivia_qa_open_test"),
        (
            "trivia_qa question: Which American-born Sinclair won the Nobel Prize for Literature in 1930?",
            "Sinclair Lewis",
        ),
    ),
    **dict.fromkeys(
        ("anli_r1", "anli_r2", "anli_r3"),
        ("anli hypothesis: A man sleeps. premise: A man is asleep in his bed.", "contradiction"),
    ),
    **dict.fromkeys(
        ("arc_easy", "arc_challenge"),
        (f"arc choice1: luster choice2: mass choice3: weight question: {ARC}", "choice3"),
    ),
    **dict.fromkeys(
        [f"winogrande_{size}" for size in ("xs", "s", "m", "l", "xl")],
        (
            "winogrande option1: trophy option2: suitcase sentence: The trophy does not fit into the suitcase because "
            "the _ is too large.",
            "option2",
        ),
    ),
}
GARBAGE = "qqq zzz"
pytestmark = pytest.mark.usefixtures("tiny_data", "tiny_vocabulary")


@functools.cache
def converter() -> seqio.EncDecFeatureConverter:
    return seqio.EncDecFeatureConverter(pack=False)


@functools.cache
def make_evaluator(name: str, split: str) -> seqio.Evaluator:
    return seqio.Evaluator(name, converter(), split, sequence_length=None, logger_cls=[])


def scores(name: str, split: str, predict) -> dict[str, float]:
    """Scores `predict(example)` texts through seqio's evaluator; predictions are padded, as a decoder's are."""
    evaluator = make_evaluator(name, split)
    vocabulary = seqio.TaskRegistry.get(name).output_features["targets"].vocabulary

    def predict_fn(dataset):
        texts = [predict(example) for example in evaluator.cached_task_datasets[name].as_numpy_iterator()]
        ids = [[*vocabulary.encode(text), vocabulary.eos_id] for text in texts]
        length = max(map(len, ids))
        return [(index, np.pad(row, (0, length - len(row)))) for index, row in zip(range(len(list(dataset))), ids)]

    found, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict_fn)
    return found.result()[name]


def perfect(example) -> str:
    """The target; where it is to be judged (WSC), another word if it is not what the pronoun stands for."""
    if "wsc" in example["inputs_pretokenized"].decode() and not example.get("label", 1):
        return GARBAGE
    return example["targets_pretokenized"].decode()


def test_there_is_a_published_text_for_every_task():
    assert TEXTS.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_text(name):
    task = seqio.TaskRegistry.get(name)
    assert TEXTS[name] in tiny_tfds.written(task, task.splits[0])


@pytest.mark.parametrize("name", NAMES)
def test_examples_have_the_lengths_of_the_run(name):
    split = seqio.TaskRegistry.get(name).splits[0]
    dataset = seqio.get_dataset(name, LENGTHS, converter(), split, shuffle=False, num_epochs=1)
    lengths = {key: 48 if key.startswith("encoder") else 12 for key in dataset.element_spec}
    assert {key: (spec.shape, spec.dtype) for key, spec in dataset.element_spec.items()} == {
        key: ((length,), tf.int32) for key, length in lengths.items()
    }
    rows = list(dataset.as_numpy_iterator())
    assert rows and all({key: len(array) for key, array in row.items()} == lengths for row in rows)
    for feature in ("encoder_input_tokens", "decoder_target_tokens"):
        assert {row[feature][row[feature] != 0][-1] for row in rows} == {1}


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("name", [name for name in NAMES if seqio.TaskRegistry.get(name).metric_fns])
def test_perfect_predictions_score_100_and_garbage_does_not(name):
    task = seqio.TaskRegistry.get(name)
    split = "validation" if "validation" in task.splits else "test"
    found, useless = scores(name, split, perfect), scores(name, split, lambda example: GARBAGE)
    hidden = name == "trivia_qa_open_test"
    assert found == pytest.approx(dict.fromkeys(found, 0 if hidden else 100))
    assert json.loads(json.dumps([found, useless])) == [found, useless]
    # Where the model names a referent, a wrong name is right for the examples in which the given one is wrong.
    least = {"super_glue_wsc_simple_eval": 25, "glue_wnli_simple_eval": 25}.get(name, 0)
    assert useless == pytest.approx(dict.fromkeys(useless, least))


@pytest.mark.parametrize("name", ["glue_cola", "glue_stsb", "super_glue_multirc", "super_glue_record", "anli_r1"])
def test_hidden_answers_are_never_right(name):
    """An invalid prediction is -1, as a hidden label is. (ANLI shows the labels of its test set.)"""
    assert set(scores(name, "test", perfect).values()) == {100 if name == "anli_r1" else 0}


def test_mixtures_have_the_rates_of_t5():
    for ours, theirs in {"glue": "glue_v002_proportional", "super_glue": "super_glue_v102_proportional"}.items():
        rates = [
            sorted(mixture.get_rate(task) for task in mixture.tasks)
            for mixture in map(seqio.MixtureRegistry.get, (ours, theirs))
        ]
        assert rates[0] == rates[1]


@pytest.mark.parametrize(
    "name",
    [
        *("super_glue", "closed_book_qa"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("glue", "closed_book_qa_test")),
    ],
)
def test_mixtures_train(name):
    dataset = seqio.get_dataset(name, LENGTHS, converter(), "train", num_epochs=None, seed=0)
    vocabulary = seqio.get_mixture_or_task(name).output_features["inputs"].vocabulary
    texts = [vocabulary.decode(row["encoder_input_tokens"].tolist()) for row in dataset.take(40).as_numpy_iterator()]
    assert len({text.split()[0] for text in texts}) > 1


def test_names_are_ours_alone():
    """seqio refuses a name twice: ours and t5's, which carry versions, are registered side by side."""
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    assert {"glue_cola", "glue_cola_v002", "glue", "glue_v002_proportional"} <= registered


def test_slices_of_closed_book_questions_are_those_of_the_paper():
    slices = {
        name: seqio.TaskRegistry.get(name).source.slices
        for name in ("natural_questions_open", "web_questions_open", "trivia_qa_open")
    }
    assert [(found["train"], found["validation"]) for found in slices.values()] == [
        ("train[:79168]", "train[79168:]"),
        ("train[:3417]", "train[3417:]"),
        ("train[:78785]", "train[78785:]"),
    ]
