"""The glossary of routing says what the code does: every setting is in it, with its default, and its examples work."""

import ast
import dataclasses
import importlib.util
import itertools
import pathlib
import re

import pytest

import switch_tf.runs.loop  # noqa: F401 (registers `train`)
from switch_tf.layers.routing import expert_capacity
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.runs import gin_config
from switch_tf.training.losses import Objective

ROOT = pathlib.Path(__file__).parents[1]
GLOSSARY = (ROOT / "docs" / "routing.md").read_text()
# What a dense T5 has as well.
NOT_OF_ROUTING = {
    "vocab_size",
    "d_model",
    "d_ff",
    "d_kv",
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "activation",
    "tied_logits",
    "dropout_rate",
    "initializer_scale",
    "feed_forward_initializer_scale",
    "relative_position_buckets",
    "relative_position_max_distance",
    "layer_norm_epsilon",
    "activation_dtype",
    "rematerialization",
}


def default_of(field: dataclasses.Field) -> object:
    """A field's default; a dictionary is one, of whatever class."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    default = field.default_factory()
    return dict(default) if isinstance(default, dict) else default


FIELDS = {
    f"{record.__name__}.{field.name}": default_of(field)
    for record in (ModelConfig, Objective)
    for field in dataclasses.fields(record)
}
ROUTING_FIELDS = {name for name in FIELDS if name.removeprefix("ModelConfig.") not in NOT_OF_ROUTING}


def table_rows() -> dict[str, list[str]]:
    """The glossary's rows that explain a setting, by its name; each as its cells."""
    rows = {}
    for line in GLOSSARY.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        setting = re.match(r"`((ModelConfig|Objective)\.\w+)`", cells[0])
        if line.startswith("|") and setting and len(cells) > 4:
            assert setting[1] not in rows, f"{setting[1]} is explained twice"
            rows[setting[1]] = cells
    return rows


def test_fields_that_are_not_of_routing_exist():
    assert {field.name for field in dataclasses.fields(ModelConfig)} >= NOT_OF_ROUTING


def test_every_setting_is_explained():
    rows = table_rows()
    assert ROUTING_FIELDS <= rows.keys() <= FIELDS.keys()
    assert {len(cells) for cells in rows.values()} == {7}


def test_defaults_are_those_of_the_code():
    for name, cells in table_rows().items():
        literal = re.fullmatch(r"`(.+)`", cells[2])
        assert literal, f"{name}: {cells[2]} is no literal in backticks"
        stated, default = ast.literal_eval(literal[1]), FIELDS[name]
        assert (type(stated), stated) == (type(default), default), name


def test_macros_set_the_settings_that_they_stand_beside():
    text = "".join(path.read_text() for path in sorted((ROOT / "gin" / "models" / "families").glob("*.gin")))
    bound = dict(re.findall(r"^(ModelConfig\.\w+) = %(\w+)$", text, re.MULTILINE))
    stated = {name: re.findall(r"`([A-Z_]+)`", cells[0]) for name, cells in table_rows().items()}
    for name, macros in stated.items():
        assert macros == ([bound[name]] if name in bound else []), name


@pytest.mark.parametrize(("text", "target"), sorted(set(re.findall(r"\[([^\]]+)\]\(([^)]+)\)", GLOSSARY))))
def test_links_lead_to_what_they_name(text, target):
    path = ROOT / "docs" / target
    assert path.exists()
    if text.startswith("`"):
        name = text.strip("`").split(".")[-1]
        assert re.search(rf"^\s*(def|class) {name}\b", path.read_text(), re.MULTILINE)


def examples() -> list[tuple[str, ...]]:
    """The glossary's gin bindings; those that stand side by side belong together."""
    binding = r"--gin\.[\w.]+=[^\s`]+"
    found = re.findall(rf"`({binding}(?: {binding})*)`", GLOSSARY)
    return sorted({tuple(example.split()) for example in found} - {("--gin.NAME=value",)})


@pytest.mark.parametrize("example", examples(), ids=" ".join)
def test_examples_make_models(example):
    bindings = [binding.removeprefix("--gin.").replace("'", "") for binding in example]
    files = ("gin/models/switch_tiny_8.gin", "gin/runs/python_docs.gin")
    gin_config.load([str(ROOT / file) for file in files], bindings)
    EncoderDecoder(ModelConfig())
    Objective()


def test_capacity_of_the_comparison():
    assert expert_capacity(100, 8, 1.25, min_expert_capacity=1) == 15
    assert "| here, Mesh TensorFlow | ⌊S · cf / E⌋ | 15 | 15 |" in GLOSSARY


def test_tables_are_whole():
    """Every row of a table has as many cells as the row above."""
    for above, below in itertools.pairwise(GLOSSARY.splitlines()):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|"), below


def test_the_picture_shows_figure_3():
    spec = importlib.util.spec_from_file_location("draw_routing", ROOT / "tools" / "draw_routing.py")
    draw_routing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_routing)
    for capacity_factor, capacity, dropped in ((1.0, 2, ["fox"]), (1.5, 3, [])):
        routing, _ = draw_routing.route(capacity_factor)
        assert routing.capacity == capacity
        assert routing.expert[0, :, 0].numpy().tolist() == [1, 0, 0, 0, 1, 2]
        gates = routing.gate[0, :, 0].numpy()
        assert [word for word, gate in zip(draw_routing.WORDS, gates) if gate == 0] == dropped
