"""Rules that tell from a window of steps whether a sparse layer is healthy: docs/router_health.md explains them.

A rule compares means over the window with a threshold. The thresholds leave room for what healthy runs do after their
first steps, and are crossed clearly by runs that have the fault.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class LayerWindow(NamedTuple):
    """What a sparse layer did on average over some steps; NaN for what was not recorded.

    expert_load: float [E], each expert's share of the tokens' choices.
    load_tokens: how many tokens the loads were counted on.
    fraction_dropped, router_entropy, router_confidence: as in `RoutingMetrics`.
    output_size, residual_size: root mean squares of what the layer adds to the residual stream, and of the stream.
    norm_scale: root mean square of the scale of the layer's input norm; 1 at the start.
    """

    expert_load: np.ndarray
    load_tokens: float
    fraction_dropped: float
    router_entropy: float
    router_confidence: float
    output_size: float = math.nan
    residual_size: float = math.nan
    norm_scale: float = math.nan

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.expert_load)

    @property
    def relative_output(self) -> float:
        """The size of what the layer adds, relative to the residual stream."""
        return self.output_size / self.residual_size if self.residual_size else math.nan


# The measures that a window averages besides the loads.
AVERAGED = tuple(name for name in LayerWindow._fields if name not in ("expert_load", "load_tokens"))


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where a fault begins.

    Attributes:
      undecided_entropy: share of ln E above which a router may be undecided...
      undecided_confidence: ... if the probability of the first choice is below this many times 1/E, too.
      collapsed_load: share of all choices that one expert gets; two experts or three may differ more (0.9).
      starved_load: share of 1/E below which an expert counts as starved.
      starved_tokens: tokens that an expert must expect in the window before it can count as starved.
      dropped: share of the tokens without a slot.
      norm_scale: root mean square of the scale of the input norm.
      relative_output: size of the layer's output relative to the residual stream.
    """

    undecided_entropy: float = 0.98
    undecided_confidence: float = 1.5
    collapsed_load: float = 0.5
    starved_load: float = 0.1
    starved_tokens: float = 20.0
    dropped: float = 0.1
    norm_scale: float = 0.1
    relative_output: float = 0.02


class Rule(NamedTuple):
    """One kind of fault.

    name: in `findings.csv`.
    holds: whether a window has the fault.
    describe: says what is wrong, with numbers; the second argument is the capacity factor in training.
    remedy: what to do.
    """

    name: str
    holds: Callable[[LayerWindow, Thresholds], bool]
    describe: Callable[[LayerWindow, float], str]
    remedy: str


def percent(share: float) -> str:
    """Writes 0.1234 as "12 %", and shares below 10 % with one more digit."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _largest(window: LayerWindow) -> float:
    return float(np.max(window.expert_load))


def _is_collapsed(window: LayerWindow, limits: Thresholds) -> bool:
    return _largest(window) > (limits.collapsed_load if window.num_experts >= 4 else 0.9) and window.num_experts > 1


def starved_experts(window: LayerWindow, limits: Thresholds) -> np.ndarray:
    """Returns the indices of the experts that get less than a tenth of an equal share; none if tokens are too few."""
    if not window.load_tokens / window.num_experts >= limits.starved_tokens:
        return np.array([], int)
    return np.flatnonzero(window.expert_load * window.num_experts < limits.starved_load)


def _is_starving(window: LayerWindow, limits: Thresholds) -> bool:
    # Where one expert gets nearly everything, the others starve for that reason.
    return not _is_collapsed(window, limits) and len(starved_experts(window, limits)) > 0


def _is_undecided(window: LayerWindow, limits: Thresholds) -> bool:
    chance = 1.0 / window.num_experts
    return (
        window.num_experts > 1
        and window.router_entropy > limits.undecided_entropy * math.log(window.num_experts)
        and window.router_confidence < limits.undecided_confidence * chance
    )


def _describe_undecided(window: LayerWindow, capacity_factor: float) -> str:
    del capacity_factor
    text = (
        f"the router is undecided (entropy {window.router_entropy:.2f} of {math.log(window.num_experts):.2f}, gate "
        f"{window.router_confidence:.3f} where {1 / window.num_experts:.3f} is chance)"
    )
    if math.isnan(window.relative_output):
        return text
    return f"{text}, and the layer adds {percent(window.relative_output)} to the residual stream"


def _describe_collapsed(window: LayerWindow, capacity_factor: float) -> str:
    del capacity_factor
    return (
        f"expert {int(np.argmax(window.expert_load))} gets {percent(_largest(window))} of the tokens, "
        f"{_largest(window) * window.num_experts:.1f} times an equal share"
    )


def _describe_starved(window: LayerWindow, capacity_factor: float) -> str:
    del capacity_factor
    starved = starved_experts(window, Thresholds())
    nothing = int(np.sum(window.expert_load == 0))
    verb = "gets" if len(starved) == 1 else "get"
    text = f"{len(starved)} of {window.num_experts} experts {verb} less than a tenth of an equal share"
    return f"{text}, {nothing} of them nothing" if nothing else text


def _describe_dropped(window: LayerWindow, capacity_factor: float) -> str:
    return f"{percent(window.fraction_dropped)} of the tokens are dropped at capacity factor {capacity_factor:g}"


def _describe_norm(window: LayerWindow, capacity_factor: float) -> str:
    del capacity_factor
    return f"the scale of the input norm has shrunk to {window.norm_scale:.3f} (1 at the start)"


def _describe_negligible(window: LayerWindow, capacity_factor: float) -> str:
    del capacity_factor
    return f"the layer adds only {percent(window.relative_output)} to the residual stream"


RULES = (
    Rule(
        "collapsed",
        _is_collapsed,
        _describe_collapsed,
        "raise Objective.balance_loss, lower the learning rate, or give the router a smaller one "
        "(Adafactor.rate_factors)",
    ),
    Rule(
        "starved",
        _is_starving,
        _describe_starved,
        "raise Objective.balance_loss, or use fewer experts: an expert that gets no tokens does not learn",
    ),
    Rule(
        "undecided",
        _is_undecided,
        _describe_undecided,
        "lower Objective.balance_loss, warm the learning rate up, or train longer if the loss still falls",
    ),
    Rule(
        "dropped",
        lambda window, limits: window.fraction_dropped > limits.dropped,
        _describe_dropped,
        "raise CAPACITY_FACTOR, or GROUP_SIZE if groups are small; a higher Objective.balance_loss evens the loads",
    ),
    Rule(
        "norm_shrunk",
        lambda window, limits: window.norm_scale < limits.norm_scale,
        _describe_norm,
        "warm the learning rate up from zero, or let norms move by absolute steps (Adafactor.absolute_steps = "
        "['norm/scale$'])",
    ),
    Rule(
        "negligible",
        lambda window, limits: window.relative_output < limits.relative_output,
        _describe_negligible,
        "its experts hardly matter: see whether the norm's scale has shrunk, and train longer before judging",
    ),
)


class Event(NamedTuple):
    """A finding begins or ends. `sentence` is empty where it ends."""

    step: int
    layer: str
    rule: str
    begins: bool
    sentence: str = ""


class Active(NamedTuple):
    """A finding that has begun and not ended: since which step, when it held last, and its newest sentence."""

    since: int
    last_held: int
    sentence: str


def periods(steps: int) -> tuple[int, int]:
    """Returns how many first steps of a run are not judged, because routers settle, and how many steps a window has.

    Each is an eighth of the run, within 50 to 1000 and 20 to 100: a run of fewer than 70 steps is not judged.
    """
    return min(1000, max(50, steps // 8)), min(100, max(20, steps // 8))


class Monitor:
    """Applies the rules to window after window, and remembers which findings have begun.

    A finding ends when its rule has not held for a whole window, so that one near its threshold does not flicker.

    Attributes:
      active: findings that have begun and not ended, by (layer, rule).
    """

    def __init__(self, window: int, capacity_factor: float):
        """Starts without findings.

        Args:
          window: the number of steps that the windows cover.
          capacity_factor: in training, for sentences.
        """
        self._window = window
        self._capacity_factor = capacity_factor
        self.active: dict[tuple[str, str], Active] = {}

    def check(self, step: int, layers: Mapping[str, LayerWindow]) -> list[Event]:
        """Judges the windows that end at a step.

        Args:
          step: of the run; rises from call to call.
          layers: the window of each sparse layer, by its name.

        Returns:
          The findings that begin and end here.
        """
        events = []
        for layer, window in layers.items():
            for rule in RULES:
                key, known = (layer, rule.name), self.active.get((layer, rule.name))
                if rule.holds(window, Thresholds()):
                    sentence = f"{layer}: {rule.describe(window, self._capacity_factor)}: {rule.remedy}."
                    self.active[key] = Active(step if known is None else known.since, step, sentence)
                    if known is None:
                        events.append(Event(step, layer, rule.name, True, sentence))
                elif known is not None and step - known.last_held >= self._window:
                    del self.active[key]
                    events.append(Event(step, layer, rule.name, False))
        return events
