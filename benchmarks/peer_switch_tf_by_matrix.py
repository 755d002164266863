"""Our training step with `Adafactor.skip_by_matrix`: a weight is updated as soon as its own gradient is there."""

from collections.abc import Callable

from benchmarks import peer_switch_tf


def functions(num_experts: int, folder: str, dtype: str) -> dict[str, Callable]:
    """The step without arguments; reads Hugging Face's weights."""
    return {"step": peer_switch_tf.functions(num_experts, folder, dtype, skip_by_matrix=True)["step"]}
