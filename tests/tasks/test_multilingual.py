"""mC4: every language's task, the block sampler's shares, its streams, and its iterator's checkpoint."""

import functools
import math
import pathlib
import time
from collections import Counter
from collections.abc import Iterator

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

import switch_tf.runs.loop  # noqa: F401 (registers `train`)
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.data.resume_settings import data_settings
from switch_tf.data.sentencepiece import train_sentencepiece
from switch_tf.data.task_lookup import vocabulary_of
from switch_tf.data.training_batches import training_dataset
from switch_tf.errors import SettingError
from switch_tf.runs import gin_config
from tasks import multilingual, vocabularies
from tests.support import tiny_c4

LENGTHS = {"inputs": 128, "targets": 29}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Iterator[pathlib.Path]:
    """A folder with mC4; its vocabulary is selected."""
    root = tmp_path_factory.mktemp("mc4")
    tiny_c4.make_mc4(root)
    lines = [tiny_c4.document(code, index) for code in multilingual.CODES for index in range(4)]
    (root / "vocabulary").write_bytes(train_sentencepiece(lines, 340))
    vocabularies.select_vocabulary(str(root / "vocabulary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(root))
        yield root


def load(*bindings: str) -> None:
    gin_config.load(["gin/runs/pretrain_multilingual.gin"], bindings)


def blocks(split: str = "train", **options) -> tf.data.Dataset:
    return seqio.get_mixture_or_task("mc4").source.get_dataset(split, **{"seed": 0, **options})


def languages_of(inputs: np.ndarray, targets: np.ndarray) -> set[str]:
    """The languages of the words of a sequence, restored; its first and last word may be cut."""
    vocabulary = vocabulary_of("mc4")
    first_sentinel = vocabulary.vocab_size - vocabulary.num_sentinels
    spans, tokens = {}, []
    for token in targets[targets > 1].tolist():
        if token >= first_sentinel:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    for token in inputs[inputs > 1].tolist():
        tokens += spans.get(token, [token])
    return {word.split("_")[0] for word in vocabulary.decode(tokens).split()[1:-1]}


def languages_of_batch(batch: dict) -> list[set[str]]:
    rows = zip(batch["encoder_input_tokens"].numpy(), batch["decoder_target_tokens"].numpy())
    return [languages_of(*row) for row in rows]


def test_there_are_107_languages_with_their_sizes():
    assert len(multilingual.CODES) == 107
    assert multilingual.PAGES["en"] == 3_079_081_989 and multilingual.PAGES["iw"] > 10**7
    assert sum(code.endswith("-Latn") for code in multilingual.CODES) == 6


def test_shares_are_those_of_the_mt5_paper():
    """Xue et al. 2021, Table 6, in percent; its 101 languages are without the six romanised ones."""
    shares = multilingual.power_law(multilingual.PAGES)
    assert sum(shares.values()) == pytest.approx(1.0)
    for code, percent in {"en": 5.67, "ru": 3.71, "de": 3.05, "sw": 0.50, "yo": 0.20}.items():
        assert 100 * shares[code] == pytest.approx(percent, abs=0.11), code
    in_proportion = multilingual.power_law(multilingual.PAGES, alpha=1.0)
    assert in_proportion["en"] == pytest.approx(multilingual.PAGES["en"] / sum(multilingual.PAGES.values()))
    assert set(multilingual.power_law(multilingual.PAGES, alpha=0.0).values()) == {1 / 107}


def test_unimax_is_even_but_for_languages_read_too_often():
    pages = {"large": 1000, "middle": 100, "small": 10}
    assert multilingual.unimax(pages, budget=30, max_epochs=1) == pytest.approx(dict.fromkeys(pages, 1 / 3))
    shares = multilingual.unimax(pages, budget=330, max_epochs=1)
    assert shares == pytest.approx({"small": 10 / 330, "middle": 100 / 330, "large": 220 / 330})
    assert multilingual.unimax(pages, budget=330, max_epochs=4)["small"] == pytest.approx(40 / 330)


@pytest.mark.parametrize("code", ["zh-Latn", pytest.param("yo", marks=pytest.mark.slow)])
def test_a_language_has_a_task_of_its_own(code):
    task = multilingual.TASKS[code]
    batch = next(iter(training_dataset(task, LENGTHS, 4, 0)))
    assert batch["encoder_input_tokens"].shape == (4, 128)
    assert languages_of_batch(batch) == [{code}] * 4
    assert list(evaluation_batches(task, LENGTHS, 4, 1))


def assert_examples_of_all_languages(dataset: tf.data.Dataset) -> None:
    """Right features, lengths and dtypes; of every language at least one sequence is of it alone."""
    lengths = {"encoder_input_tokens": 128} | dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"), 29
    )
    assert {name: (tuple(spec.shape), spec.dtype) for name, spec in dataset.element_spec.items()} == {
        name: ((length,), tf.int32) for name, length in lengths.items()
    }
    alone = set()
    for example in dataset.as_numpy_iterator():
        assert {name: array.shape for name, array in example.items()} == {name: (n,) for name, n in lengths.items()}
        languages = languages_of(example["encoder_input_tokens"], example["decoder_target_tokens"])
        if len(languages) == 1:
            alone |= languages
    assert alone == set(multilingual.CODES)


def what_it_does(preprocessor) -> object:
    """Two preprocessors of one value are the same, though the objects are others."""
    if isinstance(preprocessor, functools.partial):
        return preprocessor.func, str(preprocessor.keywords)
    return type(preprocessor) if isinstance(preprocessor, seqio.CacheDatasetPlaceholder) else preprocessor


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_language_goes_through_the_one_pipeline(split):
    """The tasks differ in nothing but their sources: those of all are read, one after the other, into one task's."""
    tasks = [seqio.get_mixture_or_task(name) for name in multilingual.TASKS.values()]
    assert len({tuple(map(what_it_does, task.preprocessors)) for task in tasks}) == 1
    assert all(task.output_features == tasks[0].output_features for task in tasks)
    sources = [task.source.get_dataset(split, shuffle=False) for task in tasks]
    assert {(spec.shape, spec.dtype) for source in sources for spec in [source.element_spec["text"]]} == {
        ((), tf.string)
    }

    def one_after_the_other(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        return functools.reduce(tf.data.Dataset.concatenate, sources)

    union = seqio.Task(
        "all_of_mc4",
        seqio.FunctionDataSource(one_after_the_other, multilingual.SPLITS),
        tasks[0].output_features,
        tasks[0].preprocessors,
    )
    dataset = union.get_dataset(LENGTHS, split, shuffle=False, num_epochs=1, seed=0)
    assert_examples_of_all_languages(seqio.EncDecFeatureConverter(pack=False)(dataset, LENGTHS))


@pytest.mark.slow
def test_the_mixture_reads_every_language_by_its_own_task():
    """107 pipelines: about a minute. All languages alike, so that all come soon."""
    load("ALPHA = 0.0")
    dataset = seqio.get_dataset(
        "mc4_languages", LENGTHS, seqio.EncDecFeatureConverter(pack=False), "train", num_epochs=None, seed=0
    )
    assert_examples_of_all_languages(dataset.take(2000))


def test_20000_documents_come_as_often_as_alpha_says():
    """Every language comes, from the very source that its task reads, and as often as its share."""
    load("BLOCK_SIZE = 1")
    number = 20_000
    drawn = Counter()
    for block in blocks().take(number).as_numpy_iterator():
        assert block["text"][0].startswith(block["language"] + b"_")
        drawn[block["language"].decode()] += 1
    errors = []
    for code, share in multilingual.power_law(multilingual.PAGES).items():
        assert drawn[code] > 0
        errors.append((drawn[code] / number - share) / math.sqrt(share * (1 - share) / number))
        assert seqio.get_mixture_or_task(multilingual.TASKS[code]).source is multilingual.SOURCES[code]
    print(f"largest deviation: {max(map(abs, errors)):.2f} standard errors")
    assert max(map(abs, errors)) < 3


@pytest.mark.slow
def test_all_languages_start_soon_in_sequences_of_one_each_and_resume_exactly(tmp_path):
    load()
    started = time.perf_counter()
    iterator = iter(training_dataset("mc4", LENGTHS, 16, 0))
    built = time.perf_counter() - started
    batches = [next(iterator) for _ in range(6)]
    print(f"built in {built:.1f} s, 6 batches after {time.perf_counter() - started:.1f} s")
    rows = np.concatenate([batch["encoder_input_tokens"] for batch in batches])
    found = [languages for batch in batches for languages in languages_of_batch(batch)]
    assert {len(languages) for languages in found} == {1}
    assert len(set.union(*found)) > 20
    assert np.all(rows != 0, axis=1).mean() > 0.8

    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    print(f"checkpoint of {size / 1e6:.1f} MB")
    assert size < 50e6
    again = iter(training_dataset("mc4", LENGTHS, 16, 0))
    tf.train.Checkpoint(iterator=again).read(path).assert_consumed()
    for _ in range(10):
        ours, theirs = next(iterator), next(again)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("num_streams", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_streams_read_other_documents(num_streams):
    """4 are more than a language has files: then the documents are dealt out."""
    load('LANGUAGES = ["de", "sw"]', "BLOCK_SIZE = 4")
    streams = []
    for index in range(num_streams):
        info = seqio.ShardInfo(index, num_streams)
        taken = list(blocks(shard_info=info).take(60).as_numpy_iterator())
        assert {block["text"].shape for block in taken} == {(4,)}
        for block in taken:
            assert {text.split(b"_")[0] for text in block["text"]} == {block["language"]}
        streams.append({text for block in taken for text in block["text"]})
    assert sum(map(len, streams)) == len(set.union(*streams)) == 2 * 24


def test_a_stream_of_several_through_the_task():
    load('LANGUAGES = ["de", "sw"]')
    info = {"shard_info": seqio.ShardInfo(1, 4), "seed": 0, "num_epochs": None}
    dataset = seqio.get_mixture_or_task("mc4").get_dataset(LENGTHS, "train", **info)
    for example in dataset.take(20).as_numpy_iterator():
        assert len(languages_of(example["inputs"], example["targets"])) == 1


def test_held_out_blocks_end_and_have_every_document():
    load('LANGUAGES = ["de", "fr", "sw"]', "BLOCK_SIZE = 3")
    texts = [text for block in blocks("validation", shuffle=False).as_numpy_iterator() for text in block["text"]]
    expected = {tiny_c4.document(code, index).encode() for code in ("de", "fr", "sw") for index in tiny_c4.HELD_OUT}
    assert len(texts) == len(expected) and set(texts) == expected
    assert list(evaluation_batches("mc4", LENGTHS, 8, None))


def test_data_that_are_not_prepared_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    for task in ("mc4", "mc4.sw"):
        with pytest.raises(
            SettingError, match=r"c4/multilingual:3\.1\.0 is not prepared .*tasks\.prepare .*a Beam job"
        ):
            training_dataset(task, LENGTHS, 16, 0)


def test_what_a_run_must_keep():
    load('LANGUAGES = ["de", "sw"]', "ALPHA = 0.7")
    kept = {"LANGUAGES": ["de", "sw"], "SHARES": "power_law", "BLOCK_SIZE": 16, "ALPHA": 0.7}
    assert data_settings("mc4") == {"USE_CACHED": False} | kept
    shares = multilingual.Languages().sampling()
    rates = data_settings("mc4_languages")
    assert rates["the rate of mc4.de"] == shares["de"] and rates["the rate of mc4.fr"] == 0.0
    gin.clear_config()
    defaults = data_settings("mc4")
    load()
    assert data_settings("mc4") == defaults
    load("SHARES = @unimax", "unimax.budget = 1000")
    kept = {"LANGUAGES": None, "SHARES": "unimax", "BLOCK_SIZE": 16}
    kept |= {"unimax.budget": 1000, "unimax.max_epochs": 4.0}
    assert data_settings("mc4") == {"USE_CACHED": False} | kept
    assert data_settings("mc4.sw") == {"USE_CACHED": False}


def test_subsets_and_other_shares():
    load('LANGUAGES = ["de", "sw"]', "SHARES = @unimax", "unimax.budget = 1000")
    assert multilingual.Languages().sampling() == {"de": 0.5, "sw": 0.5}
    load('LANGUAGES = ["de", "sw"]', "ALPHA = 1.0")
    shares = multilingual.Languages().sampling()
    assert shares["de"] / shares["sw"] == pytest.approx(multilingual.PAGES["de"] / multilingual.PAGES["sw"])
    mixture = seqio.get_mixture_or_task("mc4_languages")
    assert len(mixture.tasks) == 107
    assert mixture.get_rate(seqio.get_mixture_or_task("mc4.de")) == shares["de"]


def test_wrong_settings_are_refused():
    for binding, message in (
        ('LANGUAGES = ["he"]', "LANGUAGES has 'he', which mC4 does not have"),
        ("BLOCK_SIZE = 0", "block_size = 0 must be at least 1"),
    ):
        load(binding)
        with pytest.raises(SettingError, match=message):
            training_dataset("mc4", LENGTHS, 16, 0)
        gin.clear_config()
