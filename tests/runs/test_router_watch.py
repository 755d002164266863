"""The hook that judges routers: findings are printed and recorded when they begin and end, across a restart too."""

import types

import numpy as np

from switch_tf.layers.routing import RoutingMetrics
from switch_tf.runs.recorder import RunRecorder, read_csv
from switch_tf.runs.router_watch import WatchRouters
from switch_tf.training.step import StepMetrics
from switch_tf.training.update_statistics import UpdateStatistics


def loop_of(model_dir, config, step: int) -> types.SimpleNamespace:
    said: list[str] = []
    return types.SimpleNamespace(
        step=step,
        steps=1000,
        said=said,
        recorder=RunRecorder(str(model_dir), config, step),
        progress=types.SimpleNamespace(say=said.append),
        run=types.SimpleNamespace(experiment=types.SimpleNamespace(model=config)),
    )


def metrics_of(load: list[float], config) -> StepMetrics:
    """Metrics of a step in which the decoder's experts have these loads, and the encoder's are balanced."""
    number = np.float32(1.0)
    routing = {
        layer: RoutingMetrics(
            fraction_dropped=np.float32(0.01),
            expert_load=np.array(shares, np.float32),
            router_entropy=np.float32(0.9),
            router_confidence=np.float32(0.6),
            tokens=np.float32(100.0),
            output_square=np.float32(25.0),
            residual_square=np.float32(100.0),
        )
        for layer, shares in (("encoder/layer_1", [0.25] * 4), ("decoder/layer_1", load))
    }
    updates = dict.fromkeys(routing, UpdateStatistics(*[number] * 5))
    values = dict.fromkeys(StepMetrics._fields, number)
    return StepMetrics(**values | {"skipped": np.float32(0.0), "teacher": {}, "routing": routing, "updates": updates})


BALANCED, COLLAPSED = [0.25] * 4, [0.7, 0.1, 0.1, 0.1]


def feed(hook, loop, steps, load, config) -> None:
    hook.on_metrics(loop, [(step, metrics_of(load, config)) for step in steps])


def test_a_finding_is_said_and_recorded_once_when_it_begins_and_once_when_it_ends(tmp_path, tiny_config):
    hook, loop = WatchRouters(window=10, settling=20), loop_of(tmp_path, tiny_config, 0)
    hook.on_start(loop)
    feed(hook, loop, range(1, 21), COLLAPSED, tiny_config)
    feed(hook, loop, range(21, 31), BALANCED, tiny_config)
    assert loop.said == []
    for start in (31, 41, 51):
        feed(hook, loop, range(start, start + 10), COLLAPSED, tiny_config)
    for start in (61, 71):
        feed(hook, loop, range(start, start + 10), BALANCED, tiny_config)
    loop.recorder.close()
    assert len(loop.said) == 2
    assert loop.said[0].startswith("step 40: decoder/layer_1: expert 0 gets 70 % of the tokens")
    assert loop.said[1] == "step 70: decoder/layer_1: 'collapsed' no longer holds."
    rows = read_csv(str(tmp_path / "findings.csv"))
    assert [(row["step"], row["layer"], row["rule"], row["event"]) for row in rows] == [
        ("40", "decoder/layer_1", "collapsed", "begins"),
        ("70", "decoder/layer_1", "collapsed", "ends"),
    ]
    assert rows[0]["sentence"] in loop.said[0]


def test_a_finding_goes_on_after_a_restart(tmp_path, tiny_config):
    hook, loop = WatchRouters(window=10, settling=20), loop_of(tmp_path, tiny_config, 0)
    hook.on_start(loop)
    feed(hook, loop, range(21, 41), COLLAPSED, tiny_config)
    loop.recorder.close()
    resumed = loop_of(tmp_path, tiny_config, 40)
    hook.on_start(resumed)
    feed(hook, resumed, range(41, 51), COLLAPSED, tiny_config)
    assert resumed.said == []
    feed(hook, resumed, range(51, 61), BALANCED, tiny_config)
    assert resumed.said == ["step 60: decoder/layer_1: 'collapsed' no longer holds."]


def test_the_text_and_the_layers_groups_are_in_tensorboards_files(tmp_path, tiny_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hook, loop = WatchRouters(window=10, settling=20), loop_of(tmp_path, tiny_config, 0)
    hook.on_start(loop)
    loop.recorder.write_settings({"NUM_EXPERTS": 4, "ROUTER_DTYPE": "float32"})
    loop.recorder.write([(1, metrics_of(BALANCED, tiny_config))], 1000.0)
    feed(hook, loop, range(21, 41), COLLAPSED, tiny_config)
    loop.recorder.close()
    tags = set(EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"])
    assert {"train/loss", "encoder.layer_1/router_entropy", "decoder.layer_1/norm_scale"} <= tags
    assert {"findings/decoder.layer_1/collapsed", "custom_scalars__config__", "_hparams_/session_start_info"} <= tags
