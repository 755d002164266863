"""How to decode: the settings of `predict`, `evaluate` and evaluation while training."""

import dataclasses

import gin

from switch_tf.errors import SettingError, check_types

DECODERS = ("greedy", "sample", "beam")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a model's next-token probabilities become a text.

    Attributes:
      decoder: "greedy" takes the most probable token at each position; "sample" draws each token; "beam" searches for
        the most probable sequence.
      num_beams: how many hypotheses beam search keeps; 1 is greedy decoding, as in Mesh TensorFlow.
      length_penalty: alpha of beam search, whose scores are log probabilities over ((5 + length) / 6)^alpha.
      temperature: divides the logits before a token is drawn.
      top_k: only the k most probable tokens are drawn; None: all.
      top_p: only the most probable tokens that together have at least this probability are drawn; None: all.
      num_samples: how many sequences "sample" draws for each input.
      seed: of what is drawn. The same seed draws the same for the same example, whatever batch or mesh it is in.
      max_length: how many tokens are decoded at most; None: TASK_FEATURE_LENGTHS["targets"].
    """

    decoder: str = "greedy"
    num_beams: int = 4
    length_penalty: float = 0.6
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_samples: int = 1
    seed: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.decoder not in DECODERS:
            raise SettingError(f"DECODER = '{self.decoder}' is unknown; choose one of {', '.join(DECODERS)}.")
        for macro, value in (
            ("NUM_BEAMS", self.num_beams),
            ("TOP_K", self.top_k),
            ("NUM_SAMPLES", self.num_samples),
            ("MAX_DECODE_LENGTH", self.max_length),
        ):
            if value is not None and value < 1:
                raise SettingError(f"{macro} = {value} must be at least 1.")
        if self.temperature <= 0:
            raise SettingError(f"TEMPERATURE = {self.temperature} must be above 0; DECODER = 'greedy' is its limit.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SettingError(f"TOP_P = {self.top_p} must be above 0 and at most 1.")
        if self.length_penalty < 0:
            raise SettingError(f"LENGTH_PENALTY = {self.length_penalty} must be 0 or more.")

    @property
    def num_results(self) -> int:
        """How many sequences are decoded for each input."""
        return {"greedy": 1, "sample": self.num_samples, "beam": self.num_beams}[self.decoder]
