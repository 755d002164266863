"""Adafactor's slots in T5X's names and shapes, against means that are taken here by T5X's rules."""

import dataclasses

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.interop import architecture, t5x, t5x_files, t5x_names
from switch_tf.interop.lazy_tensors import in_memory
from switch_tf.interop.t5x_slots import our_slots, their_slots
from switch_tf.planning.weight_specs import weights_of
from switch_tf.training.adafactor import Adafactor
from tests.support.foreign_files import FOREIGN
from tests.support.random_weights import CONFIG, lazy, random_weights

# Factored on both sides but for routers, biases and norms; d_model equals the heads' width, and d_ff is larger.
LARGE = dataclasses.replace(CONFIG, vocab_size=130, d_model=128, d_ff=160, d_kv=64, num_encoder_layers=2)


def squares(config, seed=0):
    """Squared gradients of rank one for each matrix, so that factoring loses nothing; by our names."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in architecture.expected_shapes(config).items():
        if len(shape) == 1:
            found[name] = random.uniform(0.5, 2, shape).astype(np.float32)
            continue
        factors = [random.uniform(0.5, 2, size) for size in shape]
        batch = factors.pop(0)[:, None, None] if "/experts/" in name else 1
        product = factors[0]
        for factor in factors[1:]:
            product = np.multiply.outer(product, factor)
        found[name] = (batch * product).astype(np.float32)
    return found


def ours(config, values):
    """The slots that our optimizer makes of squared gradients: its shapes, by name."""
    slots = {}
    for weight in weights_of(config):
        for slot, (shape, axes) in Adafactor(learning_rate=1.0).slot_shapes(weight.shape, weight.axes).items():
            over = tuple(set(range(len(weight.axes))) - _kept(weight.axes, axes))
            array = values[weight.name].mean(over, dtype=np.float64).astype(np.float32)
            assert array.shape == shape
            slots[f"{weight.name}/slots/{slot}"] = array
    return slots


def _kept(axes, kept) -> set[int]:
    """Which dimensions of a weight a slot keeps, by their axis names in order."""
    places, start = set(), 0
    for axis in kept:
        start = axes.index(axis, start) + 1
        places.add(start - 1)
    return places


def theirs(values):
    """What T5X keeps (t5x/adafactor.py): without the largest dimension, without the second largest; experts by rule."""
    weights = t5x_names.their_weights({name: in_memory(array) for name, array in values.items()})
    slots = {}
    for name, tensor in weights.items():
        array = tensor.read().astype(np.float64)
        embed = 2 if name.endswith("wo/kernel") else 1
        if "/expert/" in name:
            kept = {"v_row": array.mean(3 - embed), "v_col": array.mean(embed)}
        elif array.ndim == 2 and sorted(array.shape)[-2] >= 128:
            second, largest = np.argsort(array.shape, kind="stable")
            kept = {"v_row": array.mean(largest), "v_col": array.mean(second)}
        else:
            kept = {"v": array}
        slots |= {f"{name}/{slot}": kept.get(slot, np.zeros(1)) for slot in ("v_row", "v_col", "v", "m")}
    return slots


@pytest.mark.parametrize("config", [LARGE, CONFIG], ids=["factored", "small"])
def test_slots_are_those_of_t5x_and_come_back(config):
    values = squares(config)
    weights = {name: in_memory(array) for name, array in values.items()}
    mine, expected = ours(config, values), theirs(values)
    there = their_slots(weights, {name: in_memory(array) for name, array in mine.items()})
    assert {name: tensor.shape for name, tensor in there.items()} == {
        name: array.shape for name, array in expected.items()
    }
    for name, tensor in there.items():
        np.testing.assert_allclose(tensor.read(), expected[name], rtol=1e-5, err_msg=name)
    back = our_slots(weights, there)
    assert back.keys() == mine.keys()
    for name, tensor in back.items():
        np.testing.assert_allclose(tensor.read(), mine[name], rtol=1e-5, err_msg=name)


def test_factored_slots_come_back_bit_by_bit(tmp_path):
    weights, mine = random_weights(LARGE), ours(LARGE, squares(LARGE))
    slots = {name: in_memory(array) for name, array in mine.items()}
    t5x.write_t5x(str(tmp_path), lazy(weights), 9, slots)
    source = t5x.read_t5x(str(tmp_path))
    back = t5x.slots_of(source)
    for name, array in mine.items():
        np.testing.assert_array_equal(back[name].read(), array, err_msg=name)
    source = dataclasses.replace(source, slots={})
    with pytest.raises(SettingError, match=r"has no slot .* leave --slots out"):
        t5x.slots_of(source)


@pytest.mark.skipif(not FOREIGN.exists(), reason="the checkpoints of other projects are not beside us")
def test_slots_that_t5x_wrote(tmp_path):
    (tmp_path / "checkpoint").write_bytes((FOREIGN / "t5x_testdata" / "test_t5_tiny.checkpoint_0").read_bytes())
    slots = t5x.slots_of(t5x.read_t5x(str(tmp_path)))
    assert all(name.endswith("/slots/v") for name in slots)
    tree = t5x_files.read_tree(str(tmp_path))
    np.testing.assert_array_equal(
        slots["decoder/layer_1/self_attention/out/slots/v"].read().reshape(12, 8),
        tree.slots["decoder/layers_1/self_attention/out/kernel/v"].read(),
    )
