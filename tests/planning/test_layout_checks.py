"""A mesh that does not fit is an error that suggests one that does; wasteful layouts are noted."""

import argparse
import dataclasses
import itertools
import pathlib
import re
import shlex

import pytest

import switch_tf.runs.loop  # noqa: F401 (registers `train`, which run files bind)
from switch_tf.cli import describe
from switch_tf.cli import main as command_line
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning import axes
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.layout_checks import check_placement, placement_notes
from switch_tf.planning.weight_specs import weights_of
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.training.adafactor import Adafactor

GIN = pathlib.Path(__file__).parents[2] / "gin"
PAGE = (GIN.parent / "docs" / "meshes.md").read_text()
RULES = "batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"
LENGTHS = {"inputs": 16, "targets": 8}

# The model that each layout file is for.
LAYOUTS = {
    "single": "switch_tiny_8",
    "cpu_data_8": "switch_tiny_8",
    "cpu_data_4_model_2": "switch_tiny_8",
    "cpu_data_2_model_4": "switch_tiny_8",
    "mirrored_8": "switch_tiny_8",
    "data_8": "switch_base_128",
    "data_4_model_2": "switch_large_128",
    "v3_8": "switch_base_128",
    "v3_32": "switch_base_128",
    "v5e_32": "switch_base_128",
    "v4_128": "switch_base_128",
    "v4_64": "switch_large_128",
    "v4_512": "switch_xxl_128",
    "v5p_128": "switch_xxl_128",
    "v6e_256": "switch_xxl_128",
    "v3_2048": "switch_c_2048",
    "v4_1024": "switch_c_2048",
    "v4_512_switch_c": "switch_c_2048",
    "v5p_256": "switch_c_2048",
    "v6e_256_switch_c": "switch_c_2048",
}
# One for each engine and generation of TPU; the others take as long again.
FAST_LAYOUTS = ("single", "cpu_data_4_model_2", "mirrored_8", "data_4_model_2", "v3_32", "v5e_32", "v4_512_switch_c")


@pytest.fixture
def config(tiny_config) -> ModelConfig:
    """12 experts, 6 heads, d_ff 32, a vocabulary of 96: sizes with different divisors."""
    return dataclasses.replace(tiny_config, num_experts=12, num_heads=6)


def layout_of(mesh: str, rules: str = RULES) -> Layout:
    """Leaves out rules for mesh dimensions that the mesh does not have."""
    there = Layout.parse(mesh, "").mesh
    return Layout.parse(mesh, ",".join(rule for rule in rules.split(",") if rule.split(":")[1] in there))


def refusal(layout: Layout, config: ModelConfig, batch_size: int | None = 24, **others) -> str:
    with pytest.raises(SettingError) as error:
        check_placement(layout, config, batch_size, **{"lengths": LENGTHS, **others})
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("mesh", "changes", "sentence", "fits"),
    [
        # As many devices if possible, and then the most similar mesh.
        ("data:8,model:1", {}, "experts over 8 devices, but NUM_EXPERTS = 12 is no multiple of 8", "data:4,model:2"),
        ("data:2,model:4", {}, "heads over 4 devices, but ModelConfig.num_heads = 6 is no", "data:4,model:2"),
        ("data:4,model:3", {}, "expert_mlp over 3 devices, but ModelConfig.d_ff = 32 is no", "data:6,model:2"),
        ("data:1,model:2", {"vocab_size": 97}, "vocab over 2 devices, but VOCAB_SIZE = 97 is no", "data:2,model:1"),
        (
            "data:1,model:2",
            {"sparse_every": 0, "d_ff": 31},
            "mlp over 2 devices, but ModelConfig.d_ff = 31 is no",
            "data:2,model:1",
        ),
        ("data:5", {"num_experts": 0}, "batch over 5 devices, but BATCH_SIZE = 24 is no multiple of 5", "data:4"),
        ("model:4,data:6", {}, "heads over 4 devices", "model:2,data:12"),
        ("data:8,more:3", {}, "NUM_EXPERTS = 12", "data:6,more:3"),  # No rule uses it: it stays.
    ],
)
def test_what_does_not_divide_is_refused_with_a_mesh_that_fits(config, mesh, changes, sentence, fits):
    config = dataclasses.replace(config, **changes)
    message = refusal(layout_of(mesh), config)
    assert message.startswith(f"MESH_SHAPE = '{mesh}' shards ") and sentence in message
    assert message.endswith(f"or set MESH_SHAPE = '{fits}'.")
    check_placement(layout_of(fits), config, 24, LENGTHS)


def test_a_microbatch_must_divide_as_well(config):
    message = refusal(layout_of("data:12"), config, num_microbatches=4)
    assert "BATCH_SIZE / NUM_MICROBATCHES = 24 / 4 = 6 is no multiple of 12" in message
    assert message.endswith("'data:6'.")
    check_placement(layout_of("data:6"), config, 24, LENGTHS, num_microbatches=4)


def test_a_mesh_of_a_million_devices_is_refused_with_one_that_fits(config):
    assert refusal(layout_of("data:1000003"), config).endswith("or set MESH_SHAPE = 'data:12'.")


@pytest.mark.parametrize("num_microbatches", [0, 5])
def test_microbatches_are_equal(config, num_microbatches):
    message = refusal(Layout.parse("", ""), config, num_microbatches=num_microbatches)
    assert message == f"NUM_MICROBATCHES = {num_microbatches} must divide BATCH_SIZE = 24 evenly."


def test_more_devices_than_there_are(config):
    message = refusal(layout_of("data:12,model:2"), config, num_devices=8)
    assert message == (
        "MESH_SHAPE = 'data:12,model:2' needs 24 devices and finds 8: set MESH_SHAPE = 'data:4,model:2', "
        "NUM_LOGICAL_DEVICES = 24 to try it on this machine's CPU, or add --gin_file=gin/layouts/single.gin for one "
        "device."
    )
    check_placement(layout_of("data:4,model:2"), config, 24, LENGTHS, num_devices=8)


def test_experts_ride_where_the_batch_does(config):
    message = refusal(layout_of("data:2,model:2", "batch:data,experts:model"), config)
    assert "map batch to 'data' and experts to 'model'" in message and "'batch:data,experts:data'" in message
    message = refusal(layout_of("data:2,model:2", "batch:data,groups:model,experts:data"), config)
    assert "map groups to 'model' and experts to 'data'" in message and "'groups:model,experts:model'" in message
    # If one of them is replicated, no all-to-all is needed.
    check_placement(layout_of("data:2,model:2", "batch:data"), config, 24, LENGTHS)
    check_placement(layout_of("data:2,model:2", "experts:model"), config, 24, LENGTHS)
    check_placement(layout_of("data:2,model:1", "batch:data,experts:model"), config, 24, LENGTHS)
    dense = dataclasses.replace(config, num_experts=0)
    check_placement(layout_of("data:2,model:2", "batch:data,experts:model"), dense, 24, LENGTHS)


def test_slots_and_lengths(config):
    assert "shard expert_mlp instead" in refusal(layout_of("model:2", "slots:model"), config)
    assert "shard heads instead" in refusal(layout_of("model:2", "length:model"), config)


def test_groups_are_as_many_on_each_device(config):
    message = refusal(Layout.parse("", ""), dataclasses.replace(config, group_size=1000), 2, lengths={"inputs": 1031})
    assert message.startswith("GROUP_SIZE = 1000 cannot hold a batch of 2062 tokens in equal groups")
    prime = dataclasses.replace(config, group_size=30)
    message = refusal(layout_of("data:2"), prime, 2, lengths={"inputs": 31})
    assert "31 tokens on each device" in message
    each_alone = dataclasses.replace(config, group_size=None)
    assert "groups over 4 devices, but BATCH_SIZE = 6" in refusal(layout_of("model:4", "groups:model"), each_alone, 6)


def test_without_a_batch_the_model_alone_is_checked(config):
    check_placement(layout_of("data:4,model:2"), config, None, LENGTHS)
    assert "NUM_EXPERTS = 12" in refusal(layout_of("data:8,model:1"), config, None)


@pytest.mark.parametrize("sparse_every", [0, 1, 2])
@pytest.mark.parametrize("switch_attention", ["none", "linear", "feed_forward"])
def test_a_mesh_is_accepted_just_when_every_weight_divides(config, sparse_every, switch_attention):
    if not sparse_every:
        switch_attention = "none"
    config = dataclasses.replace(config, sparse_every=sparse_every, switch_attention=switch_attention)
    weights, optimizer = weights_of(config), Adafactor(min_size_to_factor=8)
    slots = [slot for weight in weights for slot in optimizer.slot_shapes(weight.shape, weight.axes).values()]
    for data, model in itertools.product((1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 8)):
        layout = layout_of(f"data:{data},model:{model}")
        divides = all(
            size % layout.num_shards(axis) == 0 for weight in weights for size, axis in zip(weight.shape, weight.axes)
        )
        divides = (
            divides and config.num_heads % model == 0
        )  # An activation has heads even where a weight has heads * kv.
        try:
            check_placement(layout, config, None, LENGTHS)
        except SettingError as error:
            assert not divides, error
            fits = layout_of(re.search(r"set MESH_SHAPE = '(.+)'", str(error))[1])
            assert fits.num_devices <= layout.num_devices
            check_placement(fits, config, None, LENGTHS)
        else:
            assert divides, layout.mesh
            for shape, names in [(weight.shape, weight.axes) for weight in weights] + slots:
                local = layout.local_shape(shape, names)
                shards = [layout.mesh.get(dimension, 1) for dimension in layout.split(names)]
                assert tuple(size * parts for size, parts in zip(local, shards)) == shape


def test_notes_on_rules_and_dimensions_that_do_nothing(config):
    assert placement_notes(layout_of("data:4,model:2"), config) == []
    dense = dataclasses.replace(config, num_experts=0)
    notes = placement_notes(
        layout_of("data:4,model:2", "batch:data,length:model,groups:data,slots:data,experts:data"), dense
    )
    assert notes == ["The rule 'experts:data' shards nothing: no weight of this model has the axis experts."]
    notes = placement_notes(layout_of("data:4,model:2,one:1", "batch:data,experts:data"), config)
    assert notes == ["No rule uses 'model': the 2 devices along it hold and compute the same values."]


def test_notes_on_weights_of_which_two_axes_ask_for_one_dimension(config):
    notes = placement_notes(layout_of("data:4,model:2", "batch:data,experts:data,expert_mlp:data,vocab:model"), config)
    assert notes == [
        "encoder/layer_1/feed_forward/experts/wi and 1 like it (experts, embed, expert_mlp: 12 x 16 x 32): experts and "
        "expert_mlp map to 'data', which shards experts only.",
        "encoder/layer_1/feed_forward/experts/wo and 1 like it (experts, expert_mlp, embed: 12 x 32 x 16): experts and "
        "expert_mlp map to 'data', which shards experts only.",
    ]


@pytest.mark.parametrize(
    ("mesh", "rules", "remedy"),
    [
        ("data:4,model:2", "batch:data,experts:data", "the rule 'vocab:model' would shard it"),
        ("data:4,model:5", "batch:data,experts:data", "the rule 'embed:model' would shard it"),
        (
            "data:4",
            "batch:data,experts:data",
            "another mesh dimension, such as 'model:2', and the rule 'vocab:model' would",
        ),
        ("data:4,model:1", "batch:data,vocab:model", "a mesh in which 'model' is larger than 1 would shard it"),
    ],
)
def test_notes_on_large_weights_that_are_replicated(config, mesh, rules, remedy):
    large = dataclasses.replace(config, num_experts=0, vocab_size=2**18, d_model=80)
    notes = [note for note in placement_notes(layout_of(mesh, rules), large) if "replicated" in note]
    assert len(notes) == 1
    table = "token_embedder/embedding (vocab, embed: 262144 x 80)"
    assert notes[0].startswith(f"{table}: replicated on every device, 80 MiB; ")
    assert remedy in notes[0]
    assert not placement_notes(layout_of("data:1", "batch:data"), large)


@pytest.mark.parametrize(
    ("mesh", "rules", "remedy"),
    [
        ("data:4,model:2", "batch:data,vocab:model", "the rule 'experts:data' would shard it"),
        ("data:8,model:2", "batch:data,vocab:model", "the rule 'expert_mlp:model' would shard it"),
        (
            "data:8",
            "batch:data",
            "another mesh dimension, such as 'model:2', and the rule 'expert_mlp:model' would shard it",
        ),
    ],
)
def test_notes_on_experts_that_are_replicated(config, mesh, rules, remedy):
    large = dataclasses.replace(config, d_ff=2**17)
    notes = placement_notes(layout_of(mesh, rules), large)
    notes = [note for note in notes if "experts" in note and "replicated" in note]
    assert len(notes) == 2 and all(note.endswith(f"{remedy}.") for note in notes)


def test_every_layout_file_has_a_model():
    assert {path.stem for path in (GIN / "layouts").glob("*.gin")} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("layout", "model"),
    [pytest.param(*pair, marks=() if pair[0] in FAST_LAYOUTS else pytest.mark.slow) for pair in LAYOUTS.items()],
)
def test_layout_files_fit_the_models_that_they_are_for(layout, model, capsys):
    text = (GIN / "layouts" / f"{layout}.gin").read_text()
    assert model in text or layout == "single"
    run = "python_docs" if model == "switch_tiny_8" else "pretrain"
    files = [f"gin/models/{model}.gin", f"gin/runs/{run}.gin", f"gin/layouts/{layout}.gin"]
    gin_config.load(files, ['MODEL_DIR = "unused"', 'MIXTURE_OR_TASK = "unused"'])
    experiment = Experiment()
    mesh = Layout.parse(experiment.mesh_shape, experiment.layout_rules)
    check_placement(mesh, experiment.model, experiment.batch_size, experiment.task_feature_lengths)
    assert mesh.num_devices == (experiment.num_logical_devices or mesh.num_devices)
    assert mesh.num_shards(axes.BATCH) == mesh.mesh.get("data", 1)
    # Each replica has all experts.
    assert mesh.num_shards(axes.EXPERTS) == (1 if layout == "mirrored_8" else mesh.mesh.get("data", 1))
    # Without a run's file too: what a model needs on these devices is a question before there is a run.
    gin_config.load([files[0], files[2]], [])
    describe.run(argparse.Namespace(json=False))
    printed = capsys.readouterr().out
    if layout == "single":
        assert "devices" not in printed
    else:
        assert f"bytes on each of {mesh.num_devices} devices" in printed


def test_the_page_explains_every_axis_that_models_have(config):
    section = PAGE.split("## Axes")[1].split("\n## ")[0]
    explained = re.findall(r"^\| `(\w+)` \| .* \| (.*) \| .* \|$", section, re.MULTILINE)
    of_weights = {axis for weight in weights_of(config) for axis in weight.axes} - {None}
    assert {axis for axis, weights in explained if weights != "none"} == of_weights
    assert {axis for axis, _ in explained} == axes.AXIS_NAMES - {axes.STACK}


def test_the_page_names_every_layout():
    table = PAGE.split("| layout |")[1]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]+)\|", table, re.MULTILINE)))) == set(LAYOUTS)


@pytest.mark.parametrize("example", re.findall(r"^\$ switch-tf (.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_the_page_shows_what_is_printed(example, capsys):
    """Line for line; `...` stands for lines that are left out."""
    command, *shown = example.splitlines()
    try:
        command_line.main(shlex.split(command))
    except SystemExit as exit_:
        assert exit_.code == 2
    captured = capsys.readouterr()
    printed = captured.out + "\n".join(line for line in captured.err.splitlines() if line.startswith("switch-tf"))
    pattern = ".*".join(re.escape(part) for part in "\n".join(shown).split("..."))
    assert re.fullmatch(pattern, printed.strip(), re.DOTALL)
