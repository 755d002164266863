"""Learning rates as functions of the step (0 for the first)."""

import gin
import keras
import tensorflow as tf


@gin.configurable
@keras.saving.register_keras_serializable("switch_tf")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """base / sqrt(max(step, warmup_steps)), T5's pre-training schedule.

    The "warm-up" is flat: with 10,000 steps the rate is 0.01 until then, 0.002 at step 250,000.
    """

    def __init__(self, base: float = 1.0, warmup_steps: int = 10_000):
        self.base = base
        self.warmup_steps = warmup_steps

    def __call__(self, step) -> tf.Tensor:
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

    def __call__(self, step) -> tf.Tensor:
        del step
        return tf.constant(self.value, tf.float32)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {"value": self.value}
