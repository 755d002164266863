"""Tiny real data sets of TensorFlow Datasets: true features, files and splits, a few examples each, made in seconds.

The first example of most is the one that the T5 paper prints in its Appendix D (long ones cut short).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import seqio

import tasks.all  # noqa: F401
from tasks.tfds_source import PreparedTfds
from tools.offline_tfds import write_examples

Examples = list[dict[str, Any]]
HIDDEN = -1


def labeled(base: dict[str, Any], labels: Sequence[Any], field: str = "label") -> dict[str, Examples]:
    """A data set of one text with the given labels; hidden in the test split."""

    def examples(chosen: Sequence[Any]) -> Examples:
        return [{**base, field: label} | ({"idx": i} if "idx" in base else {}) for i, label in enumerate(chosen)]

    return {"train": examples(labels), "validation": examples(labels), "test": examples([HIDDEN, HIDDEN])}


def only(splits: Mapping[str, Examples], *names: str) -> dict[str, Examples]:
    return {name: splits[name] for name in names}


_PAIR = {"sentence1": "A tall tree fell.", "sentence2": "A tree fell.", "idx": 0}
_MNLI = labeled(
    {
        "hypothesis": "The St. Louis Cardinals have always won.",
        "premise": "yeah well losing is i mean i'm i'm originally from Saint Louis and Saint Louis Cardinals when they "
        "were there were uh a mostly a losing team but",
        "idx": 0,
    },
    [2, 0, 1, 2],
)

GLUE: dict[str, dict[str, Examples]] = {
    "cola": labeled({"sentence": "John made Bill master of himself.", "idx": 0}, [1, 0, 1, 0]),
    "sst2": labeled(
        {
            "sentence": "it confirms fincher 's status as a film maker who artfully bends technical know-how to the "
            "service of psychological insight . ",
            "idx": 0,
        },
        [1, 0, 1, 0],
    ),
    "mrpc": labeled(
        {
            "sentence1": "We acted because we saw the existing evidence in a new light , through the prism of our "
            'experience on 11 September , " Rumsfeld said .',
            "sentence2": 'Rather , the US acted because the administration saw " existing evidence in a new light , '
            'through the prism of our experience on September 11 " .',
            "idx": 0,
        },
        [1, 0, 1, 0],
    ),
    "qqp": labeled(
        {
            "question1": "What attributes would have made you highly desirable in ancient Rome?",
            "question2": "How I GET OPPERTINUTY TO JOIN IT COMPANY AS A FRESHER?",
            "idx": 0,
        },
        [0, 1, 0, 1],
    ),
    "stsb": labeled(
        {
            "sentence1": "Representatives for Puretunes could not immediately be reached for comment Wednesday.",
            "sentence2": "Puretunes representatives could not be located Thursday to comment on the suit.",
            "idx": 0,
        },
        [3.25, 0.0, 5.0, 1.6],
    ),
    "mnli": only(_MNLI, "train"),
    "mnli_matched": only(_MNLI, "validation", "test"),
    "mnli_mismatched": only(_MNLI, "validation", "test"),
    "qnli": labeled(
        {
            "question": "Where did Jebe die?",
            "sentence": "Genghis Khan recalled Subutai back to Mongolia soon afterwards, and Jebe died on the road "
            "back to Samarkand.",
            "idx": 0,
        },
        [0, 1, 0, 1],
    ),
    "rte": labeled(
        {
            "sentence1": "A smaller proportion of Yugoslavia's Italians were settled in Slovenia (at the 1991 national "
            "census, some 3078).",
            "sentence2": "Slovenia has 3,078 inhabitants.",
            "idx": 0,
        },
        [1, 0, 1, 0],
    ),
    "wnli": labeled(
        {"sentence1": "The fish ate the worm. It was tasty.", "sentence2": "The worm was tasty.", "idx": 0},
        [1, 1, 0, 1],
    ),
    "ax": only(_MNLI, "test"),
}

_MULTIRC = {
    "question": "Why was Joey surprised the morning he woke up for breakfast?",
    "answer": "There was a T-REX in his garden",
    "paragraph": "<b>Sent 1: </b>Once upon a time, there was a squirrel named Joey.<br><b>Sent 2: </b>Joey loved to go "
    "outside.<br>",
}


def _multirc(labels: Sequence[int]) -> Examples:
    """Two answers to each question: exact match is over both."""
    return [
        {**_MULTIRC, "label": label, "idx": {"paragraph": 0, "question": i // 2, "answer": i}}
        for i, label in enumerate(labels)
    ]


def _record(answers: Sequence[Sequence[str]]) -> Examples:
    base = {
        "query": "If the reports are true, @placeholder would be the first.",
        "entities": ["Hitler", "Europe", "Germany"],
        "passage": "A plan was found.\n@highlight\nIt was of Europe\n@highlight\nIt was old",
    }
    return [
        {**base, "answers": list(right), "idx": {"passage": 0, "query": query}} for query, right in enumerate(answers)
    ]


SUPER_GLUE: dict[str, dict[str, Examples]] = {
    "boolq": labeled({"question": "is the sky blue", "passage": "Sky -- The sky is blue.", "idx": 0}, [1, 0, 1, 0]),
    "cb": labeled(
        {
            "hypothesis": "Valence was helping",
            "premise": "Valence the void-brain, Valence the virtuous valet. Why couldn't the figger choose his own "
            "portion of titanic anatomy to shaft? Did he think he was helping?",
            "idx": 0,
        },
        [1, 0, 2, 1],
    ),
    "copa": labeled(
        {
            "choice1": "Many citizens relocated to the capitol.",
            "choice2": "Many citizens took refuge in other territories.",
            "premise": "Political violence broke out in the nation.",
            "question": "effect",
            "idx": 0,
        },
        [1, 0, 1, 0],
    ),
    "multirc": {
        "train": _multirc([1, 0, 0, 1]),
        "validation": _multirc([1, 0, 0, 1]),
        "test": _multirc([HIDDEN, HIDDEN]),
    },
    "record": {
        "train": _record([["Hitler", "Germany"], ["Europe"]]),
        "validation": _record([["Hitler", "Germany"], ["Europe"]]),
        "test": _record([[]]),
    },
    "rte": labeled(
        {
            "hypothesis": "Christopher Reeve had an accident.",
            "premise": "A man called Christopher Reeve is an actor.",
            "idx": 0,
        },
        [1, 0, 1, 0],
    ),
    "wic": labeled(
        {
            "sentence1": "It was the deliberation of his act that was insulting .",
            "sentence2": "The deliberations of the jury .",
            "word": "deliberation",
            "start1": 11,
            "end1": 23,
            "start2": 4,
            "end2": 17,
            "idx": 0,
        },
        [0, 1, 0, 1],
    ),
    "wsc.fixed": labeled(
        {
            "text": "The stable was very roomy, with four good stalls; a large swinging window opened into the yard , "
            "which made it pleasant and airy.",
            "span1_text": "stable",
            "span1_index": 1,
            "span2_text": "it",
            "span2_index": 20,
            "idx": 0,
        },
        [1, 0, 1, 1],
    ),
    "axb": only(labeled(_PAIR, []), "test"),
    "axg": only(labeled({"premise": "A tall tree fell.", "hypothesis": "A tree fell.", "idx": 0}, []), "test"),
}

_SQUAD = {
    "id": "1",
    "title": "Oxygen",
    "question": "What does increased oxygen concentrations in the patient's lungs displace?",
    "context": "Increased O 2 concentration in the lungs helps to displace carbon monoxide from the heme group.",
    "answers": {"text": ["carbon monoxide", "Carbon monoxide from the heme group"], "answer_start": [59, 59]},
}
_NATURAL_QUESTIONS = {"question": "who is the richest club in the championship", "answer": ["Aston Villa", "Villa"]}
_WEB_QUESTIONS = {"url": "", "question": "what is the name of justin bieber brother?", "answers": ["Jazmyn", "Jaxon"]}
_TRIVIA_QA = {
    "question": "Which American-born Sinclair won the Nobel Prize for Literature in 1930?",
    "question_id": "1",
    "question_source": "",
    "entity_pages": [],
    "search_results": [],
    "answer": {
        "aliases": ["Sinclair Lewis", "Harry Sinclair Lewis"],
        "normalized_aliases": ["sinclair lewis", "harry sinclair lewis"],
        "matched_wiki_entity_name": "",
        "normalized_matched_wiki_entity_name": "",
        "normalized_value": "sinclair lewis",
        "type": "",
        "value": "Sinclair Lewis",
    },
}
_TRIVIA_QA_HIDDEN = {
    **_TRIVIA_QA,
    "answer": {**_TRIVIA_QA["answer"], "aliases": [], "normalized_aliases": [], "value": "<unk>"},
}
_ARTICLE = "marouane fellaini and adnan januzaj continue to show the world they are not just teammates but best mates ."
_SUMMARY = "the belgian duo took to the dance floor on monday night with some friends ."


def _arc(num_choices: int, answer: str) -> dict[str, Any]:
    return {
        "id": f"{num_choices}{answer}",
        "question": "Which property of a mineral can be determined just by looking at it?",
        "choices": {
            "text": ["luster", "mass", "weight", "hardness", "age"][:num_choices],
            "label": list("ABCDE")[:num_choices],
        },
        "answerKey": answer,
    }


def everywhere(*examples: dict[str, Any], splits: Sequence[str] = ("train", "validation", "test")):
    return {split: list(examples) for split in splits}


_WINOGRANDE = labeled(
    {
        "sentence": "The trophy does not fit into the suitcase because the _ is too large.",
        "option1": "trophy",
        "option2": "suitcase",
    },
    [0, 1, 0, 1],
)

DATA_SETS: dict[str, dict[str, Examples]] = {
    **{f"glue/{name}:2.0.0": splits for name, splits in GLUE.items()},
    **{f"super_glue/{name}:1.0.2": splits for name, splits in SUPER_GLUE.items()},
    "definite_pronoun_resolution:1.1.0": everywhere(
        {
            "sentence": "Bob asked Tom if he can lend some money.",
            "pronoun": "he",
            "candidates": ["Bob", "Tom"],
            "label": 1,
        },
        splits=("train", "test"),
    ),
    "squad/v1.1:3.0.0": everywhere(_SQUAD, _SQUAD, splits=("train", "validation")),
    "natural_questions_open:1.0.0": everywhere(*[_NATURAL_QUESTIONS] * 4, splits=("train", "validation")),
    "web_questions:1.0.0": everywhere(*[_WEB_QUESTIONS] * 4, splits=("train", "test")),
    "trivia_qa/unfiltered.nocontext:1.1.0": {
        **everywhere(*[_TRIVIA_QA] * 4, splits=("train", "validation")),
        "test": [_TRIVIA_QA_HIDDEN],
    },
    "cnn_dailymail:3.4.0": everywhere({"article": _ARTICLE, "highlights": _SUMMARY, "id": "1", "publisher": "dm"}),
    "xsum:1.1.0": everywhere({"document": _ARTICLE, "summary": _SUMMARY}),
    "gem/xsum:1.1.0": everywhere(
        {
            "document": _ARTICLE,
            "target": _SUMMARY,
            "references": [_SUMMARY],
            "gem_id": "1",
            "gem_parent_id": "1",
            "xsum_id": "1",
        }
    ),
    **{
        f"anli/{name}:0.1.0": labeled(
            {"context": "A man is asleep in his bed.", "hypothesis": "A man sleeps.", "uid": "1"}, ["e", "n", "c", "e"]
        )
        | everywhere({"context": "A man.", "hypothesis": "A woman.", "uid": "1", "label": "c"}, splits=("test",))
        for name in ("r1", "r2", "r3")
    },
    **{
        f"ai2_arc/{name}:1.0.0": everywhere(_arc(4, "A"), _arc(3, "C"), _arc(5, "E"))
        for name in ("ARC-Easy", "ARC-Challenge")
    },
    "winogrande:1.2.0": only(_WINOGRANDE, "validation", "test")
    | {f"train_{size}": _WINOGRANDE["train"] for size in ("xs", "s", "m", "l", "xl")},
}


def write(
    data_dir: str, data_sets: Mapping[str, Mapping[str, Examples]] = DATA_SETS, num_files: int | None = None
) -> None:
    """Writes data sets, by default all of this module, into a folder; see `write_examples`."""
    write_examples(data_dir, data_sets, num_files)


def use(data_dir: str) -> None:
    """Makes every task of this process read `data_dir`, with slices that suit a few examples."""
    seqio.set_tfds_data_dir_override(data_dir)
    for name in seqio.TaskRegistry.names():
        source = seqio.TaskRegistry.get(name).source
        if isinstance(source, PreparedTfds):
            for split, taken in source.slices.items():
                if "[" in taken:
                    taken = "train[:50%]" if taken.startswith("train[:") else "train[50%:]"
                source.tfds_dataset._split_map[split] = taken


def texts(data_sets: Mapping[str, Mapping[str, Examples]] = DATA_SETS) -> list[str]:
    """Returns every text of the data sets once, to train a vocabulary on."""
    found: dict[str, None] = {}

    def visit(value: Any) -> None:
        if isinstance(value, str):
            found[value] = None
        elif isinstance(value, Mapping | list):
            for part in value.values() if isinstance(value, Mapping) else value:
                visit(part)

    visit(list(data_sets.values()))
    return list(found)


def written(task: seqio.Task, split: str) -> list[tuple[str, str]]:
    """Returns inputs and targets as a task writes them, before they are tokenized and cut."""
    dataset = task.source.get_dataset(split, shuffle=False)
    for preprocessor in task.preprocessors[: task.preprocessors.index(seqio.preprocessors.tokenize)]:
        dataset = preprocessor(dataset)
    return [(row["inputs"].decode(), row["targets"].decode()) for row in dataset.as_numpy_iterator()]
