"""Learning rates as functions of the step (0 for the first)."""

import math

import gin
import keras
import tensorflow as tf

from switch_tf.errors import SettingError, nearest


@gin.configurable
@keras.saving.register_keras_serializable("switch_tf")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """base / sqrt(max(step, warmup_steps)), T5's pre-training schedule.

    The "warm-up" is flat: with 10,000 steps the rate is 0.01 until then, 0.002 at step 250,000.
    """

    def __init__(self, base: float = 1.0, warmup_steps: int = 10_000):
        self.base = base
        self.warmup_steps = warmup_steps

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        return self.base * tf.math.rsqrt(tf.maximum(tf.cast(step, tf.float32), float(self.warmup_steps)))

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {"base": self.base, "warmup_steps": self.warmup_steps}


@gin.configurable
@keras.saving.register_keras_serializable("switch_tf")
class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """One rate for all steps, T5's fine-tuning schedule."""

    def __init__(self, value: float = 1e-3):
        self.value = value

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        del step
        return tf.constant(self.value, tf.float32)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {"value": self.value}


_DECAYS = ("none", "linear", "cosine", "rsqrt")


@gin.configurable
@keras.saving.register_keras_serializable("switch_tf")
class WarmupAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up to the peak, a constant rate, and a decay to the final rate that ends with the run.

    With n = step + 1 updates made after this one, W = warmup_steps, T = total_steps and D = decay_steps:

        warm-up     peak min(1, n / W)
        "linear"    final + (peak - final) r,                      r = min(1, (T - step) / D)
        "cosine"    final + (peak - final) (1 - cos(pi r)) / 2
        "rsqrt"     max(final, peak min(1, sqrt(W / n)))

    The first update of a run already has a rate above 0, and so has the last one where `final` is 0.
    """

    def __init__(
        self,
        peak: float = 0.01,
        warmup_steps: int = 1000,
        total_steps: int = 100_000,
        decay: str = "linear",
        decay_steps: int | None = None,
        final: float = 0.0,
    ):
        """Makes the schedule.

        Args:
          peak: the highest rate.
          warmup_steps: updates until the peak; 0 starts there.
          total_steps: updates of the whole run (TRAIN_STEPS); the rate stays `final` after them.
          decay: "none", "linear", "cosine" or "rsqrt".
          decay_steps: over how many of the last updates "linear" and "cosine" decay; None: from the peak on.
          final: the lowest rate after the warm-up.

        Raises:
          SettingError: if the decay is unknown, or the numbers contradict each other.
        """
        decay_steps = max(total_steps - warmup_steps, 1) if decay_steps is None else decay_steps
        if decay not in _DECAYS:
            raise SettingError(f"WarmupAndDecay.decay = {decay!r} is unknown; choose one of {list(_DECAYS)}.")
        for name, value, lowest in (
            ("warmup_steps", warmup_steps, 0),
            ("total_steps", total_steps, 1),
            ("decay_steps", decay_steps, 1),
        ):
            if value < lowest:
                raise SettingError(f"WarmupAndDecay.{name} = {value} must be at least {lowest}.")
        if not 0 <= final <= peak:
            raise SettingError(f"WarmupAndDecay.final = {final} must lie between 0 and the peak, {peak}.")
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.decay = decay
        self.decay_steps = decay_steps
        self.final = final

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        update, warmup = step + 1.0, float(max(self.warmup_steps, 1))
        warmed = self.peak * tf.minimum(1.0, update / warmup)
        return tf.where(update < warmup, warmed, self._decayed(step, update, warmup))

    def _decayed(self, step: tf.Tensor, update: tf.Tensor, warmup: float) -> tf.Tensor:
        if self.decay == "none":
            return tf.constant(self.peak, tf.float32)
        if self.decay == "rsqrt":
            return tf.maximum(self.final, self.peak * tf.minimum(1.0, tf.sqrt(warmup / update)))
        remaining = tf.clip_by_value((self.total_steps - step) / self.decay_steps, 0.0, 1.0)
        if self.decay == "cosine":
            remaining = 0.5 * (1.0 - tf.cos(math.pi * remaining))
        return self.final + (self.peak - self.final) * remaining

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        names = ("peak", "warmup_steps", "total_steps", "decay", "decay_steps", "final")
        return {name: getattr(self, name) for name in names}


_FACTORS = (
    "constant",
    "linear_warmup",
    "linear_decay",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "decay_every",
    "cosine_decay",
)


@gin.configurable
@keras.saving.register_keras_serializable("switch_tf")
class ProductOfFactors(keras.optimizers.schedules.LearningRateSchedule):
    """A product of factors by T5X's names and with T5X's values, for gin files that come from there.

    The names are those of T5X's `create_learning_rate_scheduler`. With `linear_warmup` the rate of step 0 is
    `min_learning_rate`.
    """

    def __init__(
        self,
        factors: str = "constant * linear_warmup * rsqrt_decay",
        base_learning_rate: float = 0.5,
        warmup_steps: int = 1000,
        decay_factor: float = 0.5,
        steps_per_decay: int = 20_000,
        steps_per_cycle: int = 100_000,
        min_learning_rate: float = 1e-8,
    ):
        """Makes the schedule.

        Args:
          factors: names separated by `*`.
          base_learning_rate: of "constant" and "linear_decay".
          warmup_steps: of "linear_warmup", "linear_decay", and where the rsqrt and cosine decays begin.
          decay_factor: of "decay_every" (a factor) and "linear_decay" (a slope per step).
          steps_per_decay: of "decay_every".
          steps_per_cycle: of "cosine_decay".
          min_learning_rate: no rate is lower.

        Raises:
          SettingError: if a factor is unknown, or `warmup_steps` is not positive.
        """
        for name in self._names(factors):
            if name not in _FACTORS:
                hint = nearest(name, _FACTORS)
                raise SettingError(
                    f"ProductOfFactors.factors = {factors!r}: {name!r} is unknown{hint}; the factors are "
                    f"{', '.join(_FACTORS)}."
                )
        if warmup_steps < 1:
            raise SettingError(f"ProductOfFactors.warmup_steps = {warmup_steps} must be at least 1.")
        self.factors = factors
        self.base_learning_rate = base_learning_rate
        self.warmup_steps = warmup_steps
        self.decay_factor = decay_factor
        self.steps_per_decay = steps_per_decay
        self.steps_per_cycle = steps_per_cycle
        self.min_learning_rate = min_learning_rate

    @staticmethod
    def _names(factors: str) -> list[str]:
        return [name.strip() for name in factors.split("*")]

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rate = tf.constant(1.0)
        for name in self._names(self.factors):
            rate *= self._factor(name, step)
        return tf.maximum(rate, self.min_learning_rate)

    def _factor(self, name: str, step: tf.Tensor) -> tf.Tensor | float:
        warmup = float(self.warmup_steps)
        match name:
            case "constant":
                return self.base_learning_rate
            case "linear_warmup":
                return tf.minimum(1.0, step / warmup)
            case "linear_decay":
                slope = 1.0 + self.decay_factor * (warmup - step)
                return self.base_learning_rate * tf.minimum(step / warmup, slope)
            case "rsqrt_decay":
                return tf.math.rsqrt(tf.maximum(step, warmup))
            case "rsqrt_normalized_decay":
                return tf.sqrt(warmup / tf.maximum(step, warmup))
            case "decay_every":
                return tf.pow(self.decay_factor, tf.floor(step / self.steps_per_decay))
            case "cosine_decay":
                progress = tf.maximum(0.0, (step - warmup) / self.steps_per_cycle)
                return 0.5 * (1.0 + tf.cos(math.pi * (progress % 1.0)))
        raise ValueError(name)  # The constructor knows them all.

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        names = (
            "factors",
            "base_learning_rate",
            "warmup_steps",
            "decay_factor",
            "steps_per_decay",
            "steps_per_cycle",
            "min_learning_rate",
        )
        return {name: getattr(self, name) for name in names}
