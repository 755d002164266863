"""mC4 (Xue et al. 2021), the corpus of the paper's multilingual models: 101 languages, 6 of them also romanised.

`mc4.<code>` is span corruption on one language. `mc4` is for training on all: it samples a language by its share, then
takes a block of its documents. It is one task with one tokenizer instead of a seqio mixture of 107 pipelines, which
takes a minute to start and hundreds of megabytes in a checkpoint. `mc4_languages` is that mixture, for evaluation by
language.
"""

import dataclasses
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import seqio
import tensorflow as tf

from switch_tf.errors import SettingError, nearest
from tasks.pretraining import add_span_corruption_task, span_corruption, text_features
from tasks.tfds_source import PreparedTfds

TFDS_NAME = "c4/multilingual:3.1.0"
# Pages of each language's train split in version 3.0.1, from the TFDS catalog: those of the mT5 paper's shares.
PAGES: Mapping[str, int] = json.loads((pathlib.Path(__file__).parent / "mc4_train_examples.json").read_text())
CODES = tuple(sorted(PAGES))
# seqio allows no hyphens in names: `mc4.zh_Latn`.
TASKS = {code: f"mc4.{code.replace('-', '_')}" for code in CODES}
SPLITS = ("train", "validation")

Shares = Mapping[str, float]

_MACROS = {"power_law.alpha": "ALPHA"}


@gin.configurable
def power_law(pages: Mapping[str, int], alpha: float = 0.3) -> dict[str, float]:
    """Samples languages in proportion to size^alpha (mT5, Xue et al. 2021, Sec. 3.2; mSwitch, Sec. 4.3).

    Args:
      pages: documents of each language.
      alpha: 1 samples in proportion to size, 0 all languages equally.

    Returns:
      The share of each language; they add up to 1.

    Raises:
      SettingError: if alpha is not a number.
    """
    if isinstance(alpha, str):
        raise SettingError(f"ALPHA = '{alpha}' must be a number: leave out the quotes.")
    powers = {code: count**alpha for code, count in pages.items()}
    return {code: power / sum(powers.values()) for code, power in powers.items()}


@gin.configurable
def unimax(pages: Mapping[str, int], budget: float = gin.REQUIRED, max_epochs: float = 4.0) -> dict[str, float]:
    """Samples languages as uniformly as a limit of their epochs allows (UniMax, Chung et al. 2023, Alg. 1).

    Args:
      pages: documents of each language.
      budget: documents of all languages in the whole training.
      max_epochs: how many epochs of a language at most, N in the paper.

    Returns:
      The share of each language; they add up to 1.

    Raises:
      SettingError: if a number is not positive.
    """
    for name, value in (("budget", budget), ("max_epochs", max_epochs)):
        if value <= 0:
            raise SettingError(f"unimax.{name} = {value} must be positive.")
    taken, left = {}, float(budget)
    for done, code in enumerate(sorted(pages, key=lambda code: (pages[code], code))):
        taken[code] = min(left / (len(pages) - done), pages[code] * max_epochs)
        left -= taken[code]
    return {code: taken[code] / sum(taken.values()) for code in pages}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Languages:
    """What the text of the task `mc4` is.

    Attributes:
      codes: of the languages; None for all 107.
      shares: computes each language's share from their numbers of pages, `@power_law` or `@unimax`.
      block_size: documents of one language in a row; sequences may span documents, but not blocks.
    """

    codes: Sequence[str] | None = None
    shares: Callable[[Mapping[str, int]], Shares] = power_law
    block_size: int = 16

    def __post_init__(self) -> None:
        if self.codes is not None and not self.codes:
            raise SettingError("LANGUAGES = [] names no language: None takes all of mC4's.")
        for code in self.codes or ():
            if code not in PAGES:
                raise SettingError(f"LANGUAGES has '{code}', which mC4 does not have{nearest(code, CODES)}.")
        if self.block_size < 1:
            raise SettingError(f"Languages.block_size = {self.block_size} must be at least 1.")

    def sampling(self) -> dict[str, float]:
        """Returns the share of each language; they add up to 1."""
        return dict(self.shares({code: PAGES[code] for code in self.codes or CODES}))

    def settings(self) -> dict[str, object]:
        """Returns all that the text depends on, by macro; a parameter of `shares` without a macro by its gin name."""
        rule = self.shares.__name__
        parameters = inspect.signature(self.shares).parameters.values()
        values = {parameter.name: parameter.default for parameter in parameters if parameter.name != "pages"}
        values |= gin.get_bindings(rule)
        return {
            "LANGUAGES": self.codes and list(self.codes),
            "SHARES": rule,
            "BLOCK_SIZE": self.block_size,
            **{_MACROS.get(f"{rule}.{name}", f"{rule}.{name}"): value for name, value in values.items()},
        }


class BlockSampler(seqio.DataSource):
    """Blocks of documents of one language; the language is sampled for each block.

    The training split is endless: a language is repeated as often as its share needs. Other splits are read once.
    """

    def __init__(self, sources: Mapping[str, PreparedTfds]):
        """Opens nothing yet.

        Args:
          sources: the text of each language.
        """
        # An endless stream cannot be cached; the tasks of single languages can.
        super().__init__(SPLITS, caching_permitted=False)
        self._sources = sources
        # The languages are splits of one data set.
        self.tfds_dataset = next(iter(sources.values())).tfds_dataset

    def settings(self) -> dict[str, object]:
        """Returns what the examples depend on, by macro: a run that resumes must find it unchanged."""
        return Languages().settings()

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether there may be more shards than `list_shards` names: any number, each with its own blocks."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns one name: `get_dataset` makes any number of shards itself."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Samples blocks.

        Args:
          split: "train" or "validation".
          shuffle: whether to shuffle the files of a language in each epoch.
          seed: of the order of languages and files.
          shard_info: which of how many shards; no two read the same documents.
          **unused: other arguments that seqio passes to sources.

        Returns:
          Dataset of {"language": string scalar, "text": string [block size]}.

        Raises:
          SettingError: if mC4 is not prepared, or a setting of the languages is wrong.
        """
        languages = Languages()
        shares = languages.sampling()
        stream = shard_info.index if shard_info else 0
        blocks = []
        for code in shares:
            records = self._sources[code].records(split, shuffle, seed, shard_info)
            if split == "train":
                records = records.repeat()
            blocks.append(tf.data.Dataset.zip((_always(code), records.batch(languages.block_size))))
        # Shards must not all sample the same language at once.
        order = None if seed is None else seed * 1_000_003 + stream
        sampled = tf.data.Dataset.sample_from_datasets(
            blocks, list(shares.values()), order, stop_on_empty_dataset=False
        )
        return sampled.map(_parse_block, num_parallel_calls=tf.data.AUTOTUNE)


def _always(code: str) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(code).repeat()


def _parse_block(code: tf.Tensor, records: tf.Tensor) -> dict[str, tf.Tensor]:
    parsed = tf.io.parse_example(records, {"text": tf.io.FixedLenFeature([], tf.string)})
    return {"language": code, "text": parsed["text"]}


def tokenize_block(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
    """Tokenizes each block into one row.

    Args:
      dataset: of {"text": string [block size]}.
      output_features: whose vocabulary to use.

    Returns:
      Dataset of {"targets": int32 [any length]}.
    """
    vocabulary = output_features["targets"].vocabulary

    def tokenize(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"targets": vocabulary.encode_tf(block["text"]).flat_values}

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def _share(task: seqio.Task) -> float:
    shares = Languages().sampling()
    return {TASKS[code]: share for code, share in shares.items()}.get(task.name, 0.0)


SOURCES = {
    code: PreparedTfds(TFDS_NAME, {"train": code, "validation": f"{code}-validation"}, ", a Beam job over Common Crawl")
    for code in CODES
}
for _code, _name in TASKS.items():
    add_span_corruption_task(_name, SOURCES[_code])
seqio.TaskRegistry.add(
    "mc4",
    source=BlockSampler(SOURCES),
    preprocessors=[
        tokenize_block,
        functools.partial(span_corruption, merge_documents=False),
        seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=text_features(),
)
seqio.MixtureRegistry.add("mc4_languages", [(name, _share) for name in TASKS.values()])
