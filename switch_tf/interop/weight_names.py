"""Our weights under the names and in the shapes of another system, by one table for both directions."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A weight here and there.

    Attributes:
      ours: its name here, with {layer} and {matrix} left open.
      theirs: its name there, with {expert} where they have a tensor for each expert, and fields of the table's.
      num_inputs: how many leading axes of ours (of one expert's, for a table of experts) are the inputs of a matrix.
        Theirs is a matrix of all inputs and all outputs. 0: the same array.
      is_transposed: whether theirs is [outputs, inputs].
    """

    ours: str
    theirs: str
    num_inputs: int = 0
    is_transposed: bool = False

    @property
    def is_table(self) -> bool:
        """Whether ours is a table of experts."""
        return "/experts/" in self.ours

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns ours (one expert's) as they have it, a view."""
        if not self.num_inputs:
            return array
        matrix = array.reshape(math.prod(array.shape[: self.num_inputs]), -1)
        return matrix.T if self.is_transposed else matrix

    def to_ours(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Returns theirs (one expert's) as we have it, of our `shape`, a view where it can be."""
        if not self.num_inputs:
            return array
        return (array.T if self.is_transposed else array).reshape(shape)

    def their_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of theirs for our `shape` (one expert's)."""
        if not self.num_inputs:
            return tuple(shape)
        sides = (math.prod(shape[: self.num_inputs]), math.prod(shape[self.num_inputs :]))
        return sides[::-1] if self.is_transposed else sides

    def sides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns (inputs, outputs) of a matrix of theirs, the shape of anything else."""
        return tuple(shape)[::-1] if self.num_inputs and self.is_transposed else tuple(shape)


class Theirs(NamedTuple):
    """One of our weights as they have it: the name, with {expert} left open where each expert has its own; the rule."""

    name: str
    rule: Rule


class Ours(NamedTuple):
    """One of their tensors as we have it: the name, which expert it is of (None: not of a single one), the rule."""

    name: str
    expert: int | None
    rule: Rule


class NameTable:
    """All rules of a format."""

    def __init__(self, rules: Sequence[Rule], fields: Mapping[str, str] | None = None):
        """Compiles the table.

        Args:
          rules: no two of the same name, here or there.
          fields: the pattern of each field of the names besides {layer}, {expert} and {matrix}.
        """
        self._fields = {"layer": r"\d+", "expert": r"\d+", "matrix": "wi|wi_0|wi_1|wo", **(fields or {})}
        self._rules = [(self._pattern(rule.ours), self._pattern(rule.theirs), rule) for rule in rules]

    def _pattern(self, template: str) -> re.Pattern:
        literal = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(re.sub(r"{(\w+)}", lambda field: f"(?P<{field[1]}>{self._fields[field[1]]})", literal))

    def theirs(self, name: str, **fields: object) -> Theirs | None:
        """Finds one of our weights there.

        Args:
          name: of ours.
          fields: values of the table's own fields.

        Returns:
          What they have; None where they have no such weight.
        """
        for ours, _, rule in self._rules:
            match = ours.fullmatch(name)
            if match:
                return Theirs(rule.theirs.format(**{"expert": "{expert}", **fields, **match.groupdict()}), rule)
        return None

    def ours(self, name: str) -> Ours | None:
        """Finds one of their tensors here; None where we have no such weight."""
        for _, theirs, rule in self._rules:
            match = theirs.fullmatch(name)
            if match:
                found = match.groupdict()
                expert = found.get("expert")
                return Ours(rule.ours.format(**found), None if expert is None else int(expert), rule)
        return None
