"""Data that are not there: one sentence with the command that prepares them."""

import io
import urllib.error
import urllib.request

import pytest
import seqio

from switch_tf.data.training_batches import training_dataset
from switch_tf.errors import SettingError
from tasks import prepare
from tasks.tfds_source import PreparedTfds, open_builder, same_splits
from tests.support import tiny_tfds


@pytest.fixture
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    monkeypatch.setattr(prepare.tfds.core.constants, "DATA_DIR", str(tmp_path))
    return tmp_path


def ways_in(source: PreparedTfds):
    """Every way by which seqio comes to the data."""
    return {
        "get_dataset": lambda: source.get_dataset("train"),
        "list_shards": lambda: source.list_shards("train"),
        "num_input_examples": lambda: source.num_input_examples("train"),
    }


@pytest.mark.parametrize("way", ["get_dataset", "list_shards", "num_input_examples"])
def test_data_that_are_not_prepared(nothing_prepared, way):
    source = PreparedTfds("glue/cola:2.0.0", same_splits("train"))
    with pytest.raises(
        SettingError, match=r"glue/cola:2\.0\.0 is not prepared in .*python -m tasks\.prepare glue/cola:2"
    ):
        ways_in(source)[way]()


def test_a_run_says_it_too(nothing_prepared):
    source = PreparedTfds("glue/rte:2.0.0", same_splits("train"))
    task = seqio.Task("unprepared", source, {}, preprocessors=[])
    seqio.TaskRegistry.add_provider("unprepared", task)
    try:
        with pytest.raises(SettingError, match=r"tasks\.prepare glue/rte:2\.0\.0"):
            training_dataset("unprepared", {}, batch_size=1, seed=0)
    finally:
        seqio.TaskRegistry.remove("unprepared")


def test_data_that_were_prepared_since_are_found(nothing_prepared):
    source = PreparedTfds("glue/cola:2.0.0", same_splits("train"))
    with pytest.raises(SettingError):
        source.num_input_examples("train")
    tiny_tfds.write(str(nothing_prepared), {"glue/cola:2.0.0": tiny_tfds.DATA_SETS["glue/cola:2.0.0"]})
    assert source.num_input_examples("train") == 4
    assert prepare.prepare("glue/cola:2.0.0") == str(nothing_prepared / "glue" / "cola" / "2.0.0")


@pytest.mark.parametrize("name", ["glue/cola:0.0.1", "glue/nonsense:2.0.0", "nonsense:1.0.0"])
def test_names_that_do_not_exist(name):
    with pytest.raises(SettingError, match=f"tensorflow-datasets .* has no {name}") as caught:
        open_builder(name)
    assert len(str(caught.value)) < 500


def test_no_network(nothing_prepared, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    assert prepare.main(["glue_cola"]) == 2
    message = capsys.readouterr().err
    assert "glue/cola:2.0.0 cannot be downloaded without a network" in message and "TFDS_DATA_DIR" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam"), "apache_beam, which is missing"),
        (AssertionError("Manual directory is empty.\nFetch it:\nso"), "Manual directory is empty. Fetch it: so"),
    ],
)
def test_data_that_cannot_be_prepared(nothing_prepared, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(prepare.tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(SettingError, match=message):
        prepare.prepare("xsum:1.1.0")


def test_data_sets_of_a_mixture():
    assert prepare.data_sets_of("squad") == ["squad/v1.1:3.0.0"] == prepare.data_sets_of("squad/v1.1:3.0.0")
    found = prepare.data_sets_of("super_glue")
    assert found.count("super_glue/wsc.fixed:1.0.2") == 1 and "definite_pronoun_resolution:1.1.0" in found
    assert prepare.data_sets_of("mc4") == ["c4/multilingual:3.1.0"] == prepare.data_sets_of("mc4_languages")
    with pytest.raises(SettingError, match="did you mean 'squad'"):
        prepare.data_sets_of("sqaud")
    with pytest.raises(SettingError, match="nothing to prepare"):
        prepare.data_sets_of("python_docs_span_corruption")
