"""The interface between models and engines: axis names of weights and activations."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning import axes
from switch_tf.partitioning.engine import SingleEngine
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from tests.support.features import random_features


class RecordingEngine(SingleEngine):
    """Records the activations that layers constrain."""

    def __init__(self):
        super().__init__(Layout({}, {}))
        self.placed: list[tuple[tuple[int, ...], axes.Axes]] = []

    def constrain(self, tensor, axes):
        self.placed.append((tuple(tensor.shape), axes))
        return super().constrain(tensor, axes)


def test_tokens_are_resharded_from_groups_to_experts_and_back_expert_first(tiny_config):
    engine = RecordingEngine()
    with engine.scope():
        model = EncoderDecoder(tiny_config)
        model.build()
        model(random_features())
    slots = [(shape, names) for shape, names in engine.placed if axes.SLOTS in names and axes.EMBED in names]
    way = [names.index(axes.EXPERTS) if axes.EXPERTS in names else None for _, names in slots]
    assert way == [None, 0, 0, None] * 2  # One sparse layer in each stack: out, at the experts, back.
    assert {shape[0] for shape, _ in slots} == {tiny_config.num_experts}


def test_without_an_engine_nothing_is_placed(tiny_config):
    engine = RecordingEngine()
    with engine.scope():
        pass
    model = EncoderDecoder(tiny_config)
    model.build()
    model(random_features())
    assert engine.placed == []


def test_a_variable_creator_sees_shape_and_axes_of_every_weight(tiny_config):
    seen = {}

    def creator(next_creator, **kwargs):
        variable = next_creator(**kwargs)
        weight = axes.weight_being_made()
        seen[weight.axes] = (weight.shape, tuple(variable.shape))
        return variable

    with tf.variable_creator_scope(creator):
        EncoderDecoder(tiny_config).build()
    assert all(told == made for told, made in seen.values())
    assert seen[(axes.EXPERTS, axes.EMBED, axes.EXPERT_MLP)][0] == (4, 16, 32)
    assert axes.weight_being_made() is None


def test_pieces_are_copies_and_load_puts_them_back():
    engine = make_engine("single", Layout({}, {}))
    variable = tf.Variable([[1.0, 2.0], [3.0, 4.0]], dtype=tf.bfloat16)
    ((block, values),) = engine.shards(variable)
    assert block == axes.ShardIndex((0, 0), (2, 2))
    variable.assign_add(tf.ones_like(variable))
    np.testing.assert_array_equal(values, [[1.0, 2.0], [3.0, 4.0]])
    engine.load(variable, {block: values}.__getitem__)
    np.testing.assert_array_equal(variable, values)
    ((block, values),) = engine.shards(tf.Variable(3))
    assert (block, values) == (axes.ShardIndex((), ()), 3)


@pytest.mark.parametrize(
    ("mesh", "processes", "rows"),
    [
        ("data:4,model:2", 1, [(0, 8)]),
        ("data:4,model:2", 2, [(0, 4), (4, 8)]),
        ("data:2,model:4", 4, [(0, 4), (0, 4), (4, 8), (4, 8)]),
        ("model:4,data:2", 4, [(0, 8)] * 4),
        ("model:2,data:4", 4, [(0, 4), (4, 8)] * 2),
    ],
)
def test_rows_of_each_process(mesh, processes, rows):
    layout, addresses = Layout.parse(mesh, "batch:data"), tuple(f"host{i}:1" for i in range(processes))
    engine = SingleEngine(layout, processes=Processes(addresses, processes - 1))
    assert [engine.rows(8, process) for process in range(processes)] == [slice(*pair) for pair in rows]
    assert engine.local_rows(8) == slice(*rows[-1])


@pytest.mark.parametrize("dimensions", [(0, 1, 2), (1, 2), (0,), (2,), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_every_engine_has_the_same_mean_square(dimensions, keepdims):
    tensor = np.random.default_rng(0).normal(size=(3, 160, 130)).astype(np.float32)
    expected = np.mean(np.square(tensor, dtype=np.float64), axis=dimensions, keepdims=keepdims)
    for engine in (SingleEngine(Layout({}, {})), axes.placement()):
        with axes.placed_by(engine):
            found = axes.mean_square(tf.constant(tensor), dimensions, keepdims)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_an_unknown_engine_is_named():
    with pytest.raises(SettingError, match=r"ENGINE = 'singel' is unknown \(did you mean 'single'\?\)"):
        make_engine("singel", Layout({}, {}))


def test_axes_must_fit_the_shape():
    with pytest.raises(ValueError, match="2 axis names"):
        axes.check_axes("w", (1, 2, 3), ("embed", "mlp"))
    with pytest.raises(ValueError, match="unknown axes"):
        axes.check_axes("w", (1,), ("width",))


def test_one_device_takes_no_mesh_and_no_other_process():
    with pytest.raises(SettingError, match="ENGINE = 'single' has one device and MESH_SHAPE has 8"):
        make_engine("single", Layout.parse("data:8", "batch:data"))
    with pytest.raises(SettingError, match="ENGINE = 'single' is for one process and SWITCH_TF_PROCESSES names 2"):
        make_engine("single", Layout({}, {}), processes=Processes(("a:1", "b:1"), 0))
