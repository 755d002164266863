"""Each rule holds for a window with its fault and for no healthy one; findings begin and end once."""

import math

import numpy as np
import pytest

from switch_tf.health.rules import RULES, LayerWindow, Monitor, Thresholds, periods, starved_experts


def window(num_experts: int = 8, **changed) -> LayerWindow:
    """A healthy window, with changes."""
    values = {
        "expert_load": np.full(num_experts, 1 / num_experts),
        "load_tokens": 1e5,
        "fraction_dropped": 0.02,
        "router_entropy": 0.8 * math.log(num_experts),
        "router_confidence": 3.0 / num_experts,
        "output_size": 0.5,
        "residual_size": 2.0,
        "norm_scale": 0.8,
    }
    return LayerWindow(**values | changed)


def loads(*shares: float) -> np.ndarray:
    return np.array(shares) / sum(shares)


def names(of: LayerWindow) -> list[str]:
    return [rule.name for rule in RULES if rule.holds(of, Thresholds())]


FAULTS = {
    "collapsed": {"expert_load": loads(60, 6, 6, 6, 6, 6, 5, 5)},
    "starved": {"expert_load": loads(15, 15, 15, 15, 15, 15, 1, 0)},
    "undecided": {"router_entropy": 2.07, "router_confidence": 0.14},
    "dropped": {"fraction_dropped": 0.11},
    "norm_shrunk": {"norm_scale": 0.04},
    "negligible": {"output_size": 0.01},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_triggers_its_rule_alone(name):
    assert names(window(**FAULTS[name])) == [name]


def test_every_rule_has_a_fault_here():
    assert {rule.name for rule in RULES} == set(FAULTS)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4, 64, 2048])
def test_a_healthy_window_triggers_nothing(num_experts):
    assert names(window(num_experts)) == []


def test_what_was_not_recorded_triggers_nothing():
    unknown = dict.fromkeys(("output_size", "residual_size", "norm_scale"), math.nan)
    assert names(window(**unknown)) == []


def test_few_tokens_starve_nobody():
    """Of 100 tokens some of 64 experts get none by chance."""
    generator = np.random.default_rng(0)
    counts = np.bincount(generator.integers(64, size=100), minlength=64)
    assert (counts == 0).any()
    assert len(starved_experts(window(64, expert_load=counts / 100, load_tokens=100.0), Thresholds())) == 0


def test_two_experts_may_differ():
    assert names(window(2, expert_load=loads(7, 3))) == []
    assert names(window(2, expert_load=loads(96, 4))) == ["collapsed"]


def test_sentences_have_numbers_and_a_remedy():
    monitor = Monitor(100, 1.0)
    sentences = [
        event.sentence for name in FAULTS for event in monitor.check(300, {f"encoder/{name}": window(**FAULTS[name])})
    ]
    for part in (
        "expert 0 gets 60 % of the tokens, 4.8 times an equal share: raise Objective.balance_loss",
        "2 of 8 experts get less than a tenth of an equal share, 1 of them nothing",
        "undecided (entropy 2.07 of 2.08, gate 0.140 where 0.125 is chance), and the layer adds 25 %",
        "11 % of the tokens are dropped at capacity factor 1",
        "has shrunk to 0.040 (1 at the start)",
        "adds only 0.5 % to the residual stream",
    ):
        assert sum(part in sentence for sentence in sentences) == 1, part


def test_a_finding_begins_once_and_ends_once():
    monitor, healthy, faulty = Monitor(100, 1.25), window(), window(norm_scale=0.05)
    events = [
        event
        for step, state in ((300, healthy), (350, faulty), (400, faulty), (450, healthy), (470, faulty), (550, healthy))
        for event in monitor.check(step, {"decoder/layer_1": state})
    ]
    assert [(event.step, event.rule, event.begins) for event in events] == [(350, "norm_shrunk", True)]
    assert monitor.active["decoder/layer_1", "norm_shrunk"].since == 350
    (end,) = monitor.check(570, {"decoder/layer_1": healthy})
    assert (end.step, end.begins) == (570, False)
    assert monitor.active == {}


def test_short_runs_have_short_windows():
    assert periods(100_000) == (1000, 100)
    assert periods(2400) == (300, 100)
    assert periods(400) == (50, 50)
    assert periods(24) == (50, 20)
