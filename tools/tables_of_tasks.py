"""Writes the tables of docs/tasks.md from what is registered: `python -m tools.tables_of_tasks` where docs/ is.

Examples come from the tests' tiny data sets. The text around the tables is written by hand, in docs/tasks.md itself.
"""

import collections
import pathlib
import re
import tempfile
from collections.abc import Iterable

import seqio

import tasks.all  # noqa: F401
from switch_tf.data.sentencepiece import train_sentencepiece
from tasks import c4, multilingual
from tasks.tfds_source import data_set_of
from tasks.vocabularies import RunVocabulary, select_vocabulary
from tests.support import tiny_tfds
from tools.offline_tfds import write_documents

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "tasks.md"
BEGIN, END = "<!-- begin: python -m tools.tables_of_tasks -->", "<!-- end -->"
# Examples in each split, from the TensorFlow Datasets catalog, as the data are not at hand. Each was compared with its
# page (docs/catalog of that project's repository), which was of version 1.1.0 for winogrande and 3.0.0 for
# cnn_dailymail. C4's of 3.1.0 are quoted elsewhere from its page.
SIZES: dict[str, dict[str, int]] = {
    "c4/en": {"train": 364_613_570, "validation": 364_724},
    "glue/cola": {"train": 8_551, "validation": 1_043, "test": 1_063},
    "glue/sst2": {"train": 67_349, "validation": 872, "test": 1_821},
    "glue/mrpc": {"train": 3_668, "validation": 408, "test": 1_725},
    "glue/qqp": {"train": 363_846, "validation": 40_430, "test": 390_965},
    "glue/stsb": {"train": 5_749, "validation": 1_500, "test": 1_379},
    "glue/mnli": {"train": 392_702},
    "glue/mnli_matched": {"validation": 9_815, "test": 9_796},
    "glue/mnli_mismatched": {"validation": 9_832, "test": 9_847},
    "glue/qnli": {"train": 104_743, "validation": 5_463, "test": 5_463},
    "glue/rte": {"train": 2_490, "validation": 277, "test": 3_000},
    "glue/wnli": {"train": 635, "validation": 71, "test": 146},
    "glue/ax": {"test": 1_104},
    "super_glue/boolq": {"train": 9_427, "validation": 3_270, "test": 3_245},
    "super_glue/cb": {"train": 250, "validation": 56, "test": 250},
    "super_glue/copa": {"train": 400, "validation": 100, "test": 500},
    "super_glue/multirc": {"train": 27_243, "validation": 4_848, "test": 9_693},
    "super_glue/record": {"train": 100_730, "validation": 10_000, "test": 10_000},
    "super_glue/rte": {"train": 2_490, "validation": 277, "test": 3_000},
    "super_glue/wic": {"train": 5_428, "validation": 638, "test": 1_400},
    "super_glue/wsc.fixed": {"train": 554, "validation": 104, "test": 146},
    "super_glue/axb": {"test": 1_104},
    "super_glue/axg": {"test": 356},
    "definite_pronoun_resolution": {"train": 1_322, "test": 564},
    "squad/v1.1": {"train": 87_599, "validation": 10_570},
    "natural_questions_open": {"train": 87_925, "validation": 3_610},
    "web_questions": {"train": 3_778, "test": 2_032},
    "trivia_qa/unfiltered.nocontext": {"train": 87_622, "validation": 11_313, "test": 10_832},
    "cnn_dailymail": {"train": 287_113, "validation": 13_368, "test": 11_490},
    "xsum": {"train": 203_577, "validation": 11_305, "test": 11_301},
    "gem/xsum": {"train": 23_206, "validation": 1_117, "test": 1_166},
    "anli/r1": {"train": 16_946, "validation": 1_000, "test": 1_000},
    "anli/r2": {"train": 45_460, "validation": 1_000, "test": 1_000},
    "anli/r3": {"train": 100_459, "validation": 1_200, "test": 1_200},
    "ai2_arc/ARC-Easy": {"train": 2_251, "validation": 570, "test": 2_376},
    "ai2_arc/ARC-Challenge": {"train": 1_119, "validation": 299, "test": 1_172},
    "winogrande": {
        **{"train_xs": 160, "train_s": 640, "train_m": 2_558, "train_l": 10_234, "train_xl": 40_398},
        **{"validation": 1_267, "test": 1_767},
    },
}
# The source of the text, for tasks that do not read TensorFlow Datasets.
OTHERS = {
    "c4_files_span_corruption": "the hub's json.gz files of C4, in `C4_FOLDER`",
    "files_span_corruption": "text files of your own, `TRAIN_FILES` and `VALIDATION_FILES`",
    "installed_docs_long_spans": "the docstrings of installed packages; half of the tokens in spans of 12",
    "installed_docs_span_corruption": "the docstrings of installed packages",
    "python_docs_span_corruption": "the documentation that comes with Python",
}
# T5's example (Raffel et al. 2020, Fig. 2), and the same in one of mC4's languages.
SENTENCE = "Thank you for inviting me to your party last week."
CODE, SENTENCE_OF_CODE = "de", "Danke, dass du mich letzte Woche zu deiner Feier eingeladen hast."
_LENGTHS = {"inputs": 64, "targets": 16}
_CUT = 160


def own_names() -> list[str]:
    """Returns the tasks with the run's vocabulary: those of `tasks`, not t5's."""
    found = {name: seqio.TaskRegistry.get(name) for name in seqio.TaskRegistry.names()}
    return sorted(
        name for name, task in found.items() if isinstance(task.output_features["targets"].vocabulary, RunVocabulary)
    )


def size(taken: str, counts: dict[str, int]) -> int:
    """Counts the examples of a split, a slice of one or a sum of them: "train", "train[:79168]", "train+validation"."""
    total = 0
    for part in taken.split("+"):
        split, start, stop = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", part).groups()
        total += int(stop or counts[split]) - int(start or 0)
    return total


def cell(text: str) -> str:
    """Formats text for a cell of a table: one line, abbreviated."""
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= _CUT else text[:_CUT].rsplit(" ", 1)[0] + " ..."


def data_of(task: seqio.Task) -> str:
    """Names a task's data set and version, and the slices behind its splits where the names differ."""
    slices = getattr(task.source, "slices", {})
    renamed = [f"{split} = {taken}" for split, taken in slices.items() if split != taken]
    return "; ".join([data_set_of(task) or OTHERS[task.name], *renamed])


def sizes_of(task: seqio.Task) -> str:
    """Returns the number of examples in each split, from `SIZES`; empty if the data set is not in it."""
    name = (data_set_of(task) or "").split(":")[0]
    if multilingual.TFDS_NAME.startswith(f"{name}:"):
        return f"train {sum(multilingual.PAGES.values()):,} in all languages of 3.0.1"
    if name not in SIZES:
        return ""
    return ", ".join(f"{split} {size(taken, SIZES[name]):,}" for split, taken in task.source.slices.items())


def example_of(task: seqio.Task) -> tuple[str, str]:
    """Returns an example as text, input and target; empty if there is no tiny data set."""
    if data_set_of(task) in tiny_tfds.DATA_SETS:
        inputs, targets = tiny_tfds.written(task, task.splits[0])[0]
    elif isinstance(task.source, seqio.TfdsDataSource):
        inputs, targets = corrupted(task)
    else:
        return "", ""
    return f"`{cell(inputs)}`", f"`{cell(targets)}`"


def corrupted(task: seqio.Task) -> tuple[str, str]:
    """Returns the first example of a span corruption task as text, its spans drawn with seed 0."""
    dataset = task.get_dataset(_LENGTHS, "train", shuffle=False, seed=0)
    example = next(dataset.as_numpy_iterator())
    vocabulary = task.output_features["targets"].vocabulary
    return tuple(vocabulary.decode(example[feature].tolist()) for feature in ("inputs", "targets"))


def row(name: str) -> tuple[str, ...]:
    """Returns the cells of a task's row."""
    task = seqio.TaskRegistry.get(name)
    metrics = [metric for function in task.metric_fns for metric in getattr(function, "names", [function.__name__])]
    return (f"`{name}`", cell(data_of(task)), sizes_of(task), ", ".join(metrics), *example_of(task))


def row_of_languages() -> tuple[str, ...]:
    """Returns the cells of the one row for all `mc4.<code>`, which differ in nothing but the code."""
    cells = row(multilingual.TASKS[CODE])
    return tuple(cell.replace(f"mc4.{CODE}", "mc4.<code>").replace(f"= {CODE}", "= `<code>`") for cell in cells)


def codes() -> str:
    """Lists the codes of mC4's languages, with the pages of each."""
    listed = ", ".join(f"`{code}` {pages:,}" for code, pages in sorted(multilingual.PAGES.items()))
    return (
        "Codes, with the pages in their `train` split of version 3.0.1, which the shares are computed from (a task's "
        f"name has `_` for `-`, `mc4.zh_Latn`): {listed}."
    )


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Writes a table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def mixtures(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns the rows of the mixtures whose tasks are all among `names`, with the share of each task in training."""
    rows = []
    for name in sorted(seqio.MixtureRegistry.names()):
        mixture = seqio.MixtureRegistry.get(name)
        members = sorted(task.name for task in mixture.tasks)
        if set(members) == set(multilingual.TASKS.values()):
            rows.append((f"`{name}`", "every `mc4.<code>`, in proportion to pages^`ALPHA`", ""))
        elif set(members) <= set(names):
            rates = {member: mixture.get_rate(seqio.TaskRegistry.get(member)) for member in members}
            total = sum(rates.values())
            trained = [f"{member} {100 * rate / total:.2f} %" for member, rate in rates.items() if rate]
            others = ", ".join(member for member, rate in rates.items() if not rate)
            rows.append((f"`{name}`", ", ".join(trained), others))
    return rows


def tables(names: Iterable[str]) -> str:
    """Writes the tables of the named tasks, by data set, and of the mixtures of them; `write_examples` must be in use.

    Args:
      names: of registered tasks; those of mC4's languages have one row.

    Returns:
      Markdown.
    """
    names = sorted(names)
    groups = collections.defaultdict(list)
    for name in names:
        if name not in multilingual.TASKS.values():
            data_set = data_set_of(seqio.TaskRegistry.get(name)) or "other"
            groups[data_set.split("/")[0].split(":")[0]].append(row(name))
    groups["c4"].append(row_of_languages())
    header = ("task", "data", "examples", "metrics", "in", "out")
    tables_of = {group: table(header, rows) for group, rows in groups.items()}
    tables_of["c4"] += f"\n\n{codes()}"
    parts = [f"### {group}\n\n{written}" for group, written in sorted(tables_of.items())]
    mixed = table(("mixture", "trains on", "at rate 0"), mixtures(names))
    return "\n\n".join([*parts, f"### Mixtures\n\n{mixed}"])


def write_examples(folder: str) -> None:
    """Prepares the tiny data sets with their first examples only, as TensorFlow Datasets has an order of its own.

    Also selects a vocabulary, for the examples of span corruption.
    """
    first = {
        # Twice, so that a task whose splits are halves of one has an example in each.
        name: {split: examples[:1] * 2 for split, examples in splits.items()}
        for name, splits in tiny_tfds.DATA_SETS.items()
    }
    tiny_tfds.write(folder, first)
    root = pathlib.Path(folder)
    write_documents(c4.TFDS_NAME, root, {"train": [SENTENCE]}, 1)
    write_documents(multilingual.TFDS_NAME, root, {CODE: [SENTENCE_OF_CODE]}, 1)
    texts = [*tiny_tfds.texts(), SENTENCE, SENTENCE_OF_CODE]
    (root / "vocabulary").write_bytes(train_sentencepiece(texts, 400))
    select_vocabulary(str(root / "vocabulary"))


def main() -> None:
    """Writes the tables between the marks of the page."""
    with tempfile.TemporaryDirectory() as folder:
        write_examples(folder)
        tiny_tfds.use(folder)
        text = PAGE.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables(own_names())}\n\n{END}{after}")


if __name__ == "__main__":
    main()
