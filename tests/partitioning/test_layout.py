"""Layout rules: their notation, and the shard of a tensor that each device holds."""

import math

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.partitioning.axes import BATCH, EMBED, EXPERT_MLP, EXPERTS, GROUPS, HEADS, MLP, SLOTS, VOCAB
from switch_tf.partitioning.layout import Layout, divisors

RULES = "batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"


def test_notation():
    layout = Layout.parse("data:4,model:2", "batch:data,heads:model")
    assert (layout.mesh, layout.rules) == ({"data": 4, "model": 2}, {"batch": "data", "heads": "model"})
    assert layout.num_devices == 8
    assert (
        Layout.parse(" data:4 ; model:2;", " batch:data;heads : model ") == layout
    )  # As Mesh TensorFlow's users write.
    assert Layout.parse("", "") == Layout({}, {})
    assert Layout.parse("", "").num_devices == 1


@pytest.mark.parametrize(
    ("mesh", "rules", "sentence"),
    [
        ("data=4", "", "MESH_SHAPE = 'data=4' is not of the form 'data:4,model:2': see 'data=4'."),
        ("data:4,:2", "", "MESH_SHAPE = 'data:4,:2' is not of the form 'data:4,model:2': see ':2'."),
        ("data:4,data:2", "", "MESH_SHAPE = 'data:4,data:2' names data twice."),
        ("data:0", "", "MESH_SHAPE = 'data:0': the size of data must be an integer of at least 1."),
        ("data:00", "", "MESH_SHAPE = 'data:00': the size of data must be an integer of at least 1."),
        ("data:1048577", "", "is larger than any machine: it may have 4 dimensions and 1,048,576 devices."),
        ("data:" + "9" * 5000, "", "is larger than any machine: it may have 4 dimensions and 1,048,576 devices."),
        ("data:1024,model:1024,x:2", "", "is larger than any machine"),
        ("a:1,b:1,c:1,d:1,e:1", "", "is larger than any machine"),
        ("data:4.0", "", "MESH_SHAPE = 'data:4.0': the size of data must be an integer of at least 1."),
        (
            "data:4",
            "batch",
            "LAYOUT_RULES = 'batch' is not of the form 'batch:data,experts:data,heads:model': see 'batch'.",
        ),
        ("data:4", "batch:data,batch:data", "LAYOUT_RULES = 'batch:data,batch:data' names batch twice."),
        (
            "data:4",
            "expert:data",
            "LAYOUT_RULES name an unknown axis 'expert' (did you mean 'experts'?); the axes are batch, embed,",
        ),
        (
            "data:4",
            "batch:date",
            "map batch to 'date' (did you mean 'data'?), which is no dimension of MESH_SHAPE: its dimensions",
        ),
        ("", "batch:data", "which is no dimension of MESH_SHAPE: its dimensions are none."),
    ],
)
def test_what_cannot_be_read_is_told_in_one_sentence(mesh, rules, sentence):
    with pytest.raises(SettingError) as error:
        Layout.parse(mesh, rules)
    message = str(error.value)
    assert sentence in message
    assert message.endswith(".") and "\n" not in message


def test_divisors_are_those_of_trial_division():
    for number in (1, 2, 16, 36, 97, 360, 1024, 2 * 1031):
        assert divisors(number) == [size for size in range(1, number + 1) if number % size == 0]


def test_groups_go_where_the_batch_goes():
    layout = Layout.parse("data:4,model:2", RULES)
    assert layout.dimension_of(GROUPS) == "data"
    assert layout.num_shards(GROUPS) == layout.num_shards(BATCH) == 4
    assert Layout.parse("data:4,model:2", "batch:data,groups:model").dimension_of(GROUPS) == "model"
    assert Layout.parse("data:4,model:2", "experts:data").dimension_of(GROUPS) is None


def test_axes_without_a_rule_are_whole():
    layout = Layout.parse("data:4,model:2", RULES)
    assert layout.split((EMBED, None, HEADS)) == (None, None, "model")
    assert layout.num_shards(EMBED) == layout.num_shards(None) == 1


def test_of_two_axes_that_ask_for_one_dimension_the_first_has_it():
    layout = Layout.parse("data:4,model:2", RULES)
    assert layout.split((None, GROUPS, SLOTS, EMBED)) == (None, "data", None, None)
    assert layout.split((EXPERTS, GROUPS, SLOTS, EMBED)) == ("data", None, None, None)
    assert layout.split((VOCAB, MLP)) == ("model", None)


def test_local_shape():
    layout = Layout.parse("data:4,model:2", RULES)
    assert layout.local_shape((8, 16, 32), (EXPERTS, EMBED, EXPERT_MLP)) == (2, 16, 16)
    assert layout.local_shape((16,), (EMBED,)) == (16,)
    assert layout.local_shape((), ()) == ()
    assert Layout.parse("", "").local_shape((8, 16), (EXPERTS, EMBED)) == (8, 16)


def test_the_last_mesh_dimension_is_the_fastest():
    places = [Layout.parse("data:2,model:3", "").coordinates_of(device) for device in range(6)]
    assert [(place["data"], place["model"]) for place in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("mesh", ["", "data:1", "data:8", "data:4,model:2", "data:2,model:4", "model:3,data:2,more:2"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((24,), (EMBED,)),
        ((24, 12), (EMBED, MLP)),
        ((8, 12, 24), (EXPERTS, EMBED, EXPERT_MLP)),
        ((8, 24, 2, 4), (EXPERTS, GROUPS, SLOTS, EMBED)),
        ((24, 24), (HEADS, MLP)),
    ],
)
def test_blocks_of_all_devices_tile_a_tensor(mesh, shape, axes):
    """Each element is replicated over the mesh dimensions that do not shard the tensor."""
    wanted = "batch:data,experts:data,heads:model,mlp:model,expert_mlp:model"
    there = Layout.parse(mesh, "").mesh
    layout = Layout.parse(mesh, ",".join(rule for rule in wanted.split(",") if rule.split(":")[1] in there))
    copies, blocks = np.zeros(shape, int), set()
    for device in range(layout.num_devices):
        block = layout.shard_index(shape, axes, device)
        assert block.shape == layout.local_shape(shape, axes)
        copies[tuple(slice(start, start + size) for start, size in zip(block.start, block.shape))] += 1
        blocks.add(block)
    parts = math.prod(layout.mesh.get(dimension, 1) for dimension in layout.split(axes))
    assert len(blocks) == parts
    assert (copies == layout.num_devices // parts).all()
