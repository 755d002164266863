"""The manifest of a checkpoint: what a reader must know before it reads tensors. Nobody else knows its keys."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

# Between a weight's name and that of its optimizer slot: "encoder/layer_0/.../kernel/slots/v_row".
SLOTS = "/slots/"

# Of tensor names, of shard files and of the keys below. A checkpoint of another format is refused.
FORMAT = 2


def _digest(values: Mapping[str, object]) -> str:
    """Returns the SHA-256 of what a manifest says, as parsed from JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class WrongFormat(ValueError):
    """A manifest that another version of switch_tf wrote."""


@dataclasses.dataclass(frozen=True)
class Score:
    """How good a checkpoint is.

    Attributes:
      metric: "glue_rte/accuracy"; of two checkpoints the one with the higher value is better.
      value: in the metric's unit.
    """

    metric: str
    value: float


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint belongs to.

    Attributes:
      step: updates that had been made.
      settings: the run's settings that must not change when it resumes, by macro.
      data: settings of the data that must not change either; None in checkpoints that did not record them.
      model: the fields of the `ModelConfig`.
      shapes: of every tensor, by name.
      vocabulary: SHA-256 of the run's vocabulary; None where it keeps none.
      score: of these weights; None where they were not scored.
      slots_since: the step at which the optimizer's slots were zero; more than 0 in a run that goes on from weights
        alone.
      versions: of the packages that wrote it.
    """

    step: int
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    data: Mapping[str, object] | None = None
    model: Mapping[str, object] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    vocabulary: str | None = None
    score: Score | None = None
    slots_since: int = 0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_weights_alone(self) -> bool:
        """Whether no run wrote it: `switch-tf convert` knows no data, and so no settings that must not change."""
        return not self.settings

    def to_json(self) -> str:
        """Returns the text of `manifest.json`."""
        values = {"format": FORMAT} | dataclasses.asdict(self)
        text = json.dumps({name: value for name, value in values.items() if name != "data" or value is not None})
        plain = json.loads(text)
        return json.dumps(plain | {"digest": _digest(plain)})

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parses the text of `manifest.json`.

        Raises:
          WrongFormat: if another version of switch_tf wrote it.
          ValueError: if it is damaged.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"A manifest is a JSON object, not {type(values).__name__}.")
        # Earlier versions wrote none.
        digest = values.pop("digest", None)
        if digest not in (None, _digest(values)):
            raise ValueError("The manifest is not as it was written: its digest is another.")
        if values.get("format") != FORMAT:
            raise WrongFormat(f"The manifest has format {values.get('format')}, not {FORMAT}.")
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            fields = {name: value for name, value in values.items() if name in known}
            fields["shapes"] = {name: tuple(shape) for name, shape in values["shapes"].items()}
            fields["score"] = Score(**values["score"]) if values.get("score") else None
            return cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"The manifest lacks what it should have: {error}.") from error

    def difference(self, shapes: Mapping[str, tuple[int, ...]], with_slots: bool) -> str | None:
        """Names the first tensor that is absent, unexpected or of another shape than the reader's.

        Args:
          shapes: of the reader's variables, by name.
          with_slots: whether the optimizer's slots count.

        Returns:
          "NAME is SHAPE there and SHAPE here"; None if all tensors fit.
        """
        theirs = {name: shape for name, shape in self.shapes.items() if with_slots or SLOTS not in name}
        different = {name for name in theirs.keys() | shapes.keys() if theirs.get(name) != shapes.get(name)}
        if not different:
            return None
        name = min(different)
        return f"{name} is {theirs.get(name, 'absent')} there and {shapes.get(name, 'absent')} here"
