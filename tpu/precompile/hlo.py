"""Reads optimized HLO text: which collectives and how many matmul FLOPs a program executes."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from switch_tf.errors import SettingError

# The result of these asynchronous instructions is a tuple that starts with the operands.
_STARTS_WITH_OPERANDS = ("collective-permute-start", "all-gather-start", "all-to-all-start")
COLLECTIVES = ("all-to-all", "all-reduce", "all-gather", "reduce-scatter", "collective-permute")
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_UNREADABLE = "The compiler wrote HLO that switch_tf cannot parse"
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
_SHAPE = re.compile(r"([a-z]+[0-9]+[a-z0-9]*|pred)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: unique in the program.
      result: its shape, or tuple of shapes, in HLO's notation.
      kind: the opcode: "convolution", "all-to-all", ...
      rest: operands and attributes, in HLO's notation.
    """

    name: str
    result: str
    kind: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands; in the text each may follow its shape."""
        inside = self.rest[: _closing(self.rest)]
        return re.findall(r"%([\w.\-]+)", inside)

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Dtype and dimensions of each array of the result."""
        return [(dtype, _sizes(sizes)) for dtype, sizes in _SHAPE.findall(self.result)]


def array_bytes(dtype: str, sizes: tuple[int, ...]) -> int:
    """Returns the size of an array in bytes.

    Args:
      dtype: in HLO's notation: "bf16".
      sizes: its dimensions.
    """
    return _ITEM_BYTES.get(dtype, 4) * math.prod(sizes)


class Collective(NamedTuple):
    """A collective of a program.

    Attributes:
      kind: "all-to-all", ...
      shapes: of its results on one device, in HLO's notation: "f32[8,2,4,16]".
      num_bytes: of its results on one device.
      groups: the replica groups; () for one group of all devices.
      source: TensorFlow's name of the op that it belongs to.
      executions: how often the program executes it.
      is_asynchronous: whether its start and its end are instructions of their own, with others between them.
      covering_flops: the matmul FLOPs among those, of one execution.
    """

    kind: str
    shapes: tuple[str, ...]
    num_bytes: int
    groups: tuple[tuple[int, ...], ...]
    source: str
    executions: int
    is_asynchronous: bool
    covering_flops: float

    @property
    def largest(self) -> tuple[int, str]:
        """The bytes and the shape of its largest array."""
        return max((array_bytes(*_parse_shape(shape)), shape) for shape in self.shapes)


class HloProgram:
    """The optimized program of one device.

    Attributes:
      computations: instructions of each computation, by its name.
      executions: how often each computation that is executed at all is executed.
    """

    def __init__(self, text: str):
        """Parses a program.

        Args:
          text: HLO, in the notation of `HloModule.to_string`.
        """
        self.computations: dict[str, list[Instruction]] = {}
        entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            instruction = _INSTRUCTION.match(line)
            if instruction:
                current.append(Instruction(*instruction.groups()))
            elif header := _HEADER.match(line):
                current = self.computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        self._entry = entry
        self.executions = self._count_executions(entry)
        self._shapes: Mapping[str, tuple[int, ...]] = {
            instruction.name: instruction.shapes[0][1]
            for computation in self.computations.values()
            for instruction in computation
            if instruction.shapes
        }
        self._flops: dict[str, float] = {}

    def _count_executions(self, entry: str) -> dict[str, int]:
        executions = dict.fromkeys(self.computations, 0)
        executions[entry] = 1
        # HLO text defines a computation before its callers.
        for name in reversed(self.computations):
            for instruction in self.computations[name] if executions[name] else ():
                for called, times in self._calls(instruction):
                    executions[called] += times * executions[name]
        return {name: times for name, times in executions.items() if times}

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        if instruction.kind == "while":
            names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", instruction.rest))
            yield names["body"], self._trip_count(instruction, **names)
            return
        for group in _CALLED.findall(instruction.rest):
            for name in group.split(", "):
                yield name.removeprefix("%"), 1

    def _trip_count(self, loop: Instruction, condition: str, body: str) -> int:
        """Returns how often a loop's body runs at most: the bound of its counter over what the body adds to it."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if known:
            return int(known[1])
        bounds = [
            int(instruction.rest.split(")")[0])
            for instruction in self.computations[condition]
            if instruction.kind == "constant" and instruction.result.startswith(("s32[]", "u32[]"))
        ]
        if len(bounds) != 1:
            raise SettingError(f"The loop {loop.name} has no trip count that its condition {condition} shows.")
        return -(-bounds[0] // self._increment(condition, body))

    def _increment(self, condition: str, body: str) -> int:
        """Returns what a loop's body adds to the counter: more than 1 where the compiler unrolled the loop."""
        counter = [re.search(r"index=(\d+)", each.rest) for each in self.computations[condition] if each.shapes]
        index = next((int(found[1]) for found in counter if found), 0)
        by_name = {instruction.name: instruction for instruction in self.computations[body]}
        after = by_name.get([*by_name.values()][-1].operands[index])
        added = [by_name[name] for name in after.operands if name in by_name] if after and after.kind == "add" else []
        constants = [int(each.rest.split(")")[0]) for each in added if each.kind == "constant"]
        return constants[0] if constants else 1

    def collectives(self) -> list[Collective]:
        """Lists the collectives.

        An asynchronous collective appears as a start and a done instruction, and on TPUs as several clones with one
        channel id; it is listed once.
        """
        found: dict[tuple[str, str], Collective] = {}
        for computation, executions in self.executions.items():
            instructions = self.computations[computation]
            covering = self._covering_flops(instructions)
            for instruction in instructions:
                kind = instruction.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                source = re.search(r'op_name="([^"]*)"', instruction.rest)
                arrays = instruction.shapes
                if instruction.kind in _STARTS_WITH_OPERANDS:  # (operands, results, ...)
                    number = len(instruction.operands)
                    arrays = arrays[number : 2 * number]
                found[kind, channel[1] if channel else instruction.name] = Collective(
                    kind,
                    tuple(f"{dtype}[{','.join(map(str, sizes))}]" for dtype, sizes in arrays),
                    sum(array_bytes(dtype, sizes) for dtype, sizes in arrays),
                    replica_groups(instruction.rest),
                    source[1] if source else "",
                    executions,
                    instruction.name in covering,
                    covering.get(instruction.name, 0.0),
                )
        return list(found.values())

    def _covering_flops(self, instructions: Sequence[Instruction]) -> dict[str, float]:
        """Counts, for each asynchronous instruction, the matmul FLOPs between its start and its end.

        The instructions of an optimized program are in the order in which the device executes them.
        """
        running: dict[str, float] = {}
        ended: dict[str, float] = {}
        for instruction in instructions:
            if instruction.kind.endswith("-done"):
                started = instruction.operands[0]
                ended[started] = running.pop(started, 0.0)
                continue
            flops = self._instruction_flops(instruction) if running else 0.0
            running = {name: before + flops for name, before in running.items()}
            if instruction.kind.endswith("-start"):
                running[instruction.name] = 0.0
        return ended

    def matmul_flops(self) -> float:
        """Counts matmul FLOPs, 2 for each multiply-add; the TPU compiler turns matmuls into convolutions."""
        return self._computation_flops(self._entry)

    def _computation_flops(self, name: str) -> float:
        if name not in self._flops:
            self._flops[name] = sum(self._instruction_flops(instruction) for instruction in self.computations[name])
        return self._flops[name]

    def _instruction_flops(self, instruction: Instruction) -> float:
        """Counts the matmul FLOPs of one execution, and of what it calls."""
        if instruction.kind in ("convolution", "dot"):
            left, right, *_ = (self._shapes[name] for name in instruction.operands)
            count = _convolution_flops if instruction.kind == "convolution" else _dot_flops
            return count(instruction, left, right)
        return sum(times * self._computation_flops(called) for called, times in self._calls(instruction))


def replica_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """Parses the replica groups of a collective.

    Args:
      attributes: `replica_groups={{0,1},{2,3}}`, or `replica_groups=[2,2]<=[4]` (a reshaped range), or
        `replica_groups=[2,2]<=[2,2]T(1,0)` (a transposed one), or `replica_groups=mesh['a'=2,'b'=2] {'b'}` (along
        dimensions of a mesh); or a permutation's `source_target_pairs`.

    Returns:
      The groups; () for one group of all devices.

    Raises:
      SettingError: for another notation.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return tuple(_sizes(group) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    found = _along_mesh(attributes) or _reshaped_range(attributes)
    if found is None:
        if "replica_groups=" in attributes.replace("replica_groups={}", ""):
            raise SettingError(f"{_UNREADABLE}: {attributes}")
        return ()
    dimensions, order, size = found
    strides = [math.prod(dimensions[i + 1 :]) for i in range(len(dimensions))]
    coordinates = itertools.product(*(range(dimensions[i]) for i in order))
    devices = [sum(index * strides[i] for index, i in zip(each, order)) for each in coordinates]
    return tuple(tuple(devices[start : start + size]) for start in range(0, len(devices), size))


# The sizes of an array of devices, the order in which its dimensions are counted, the last fastest, and the devices of
# each group.
_Groups = tuple[tuple[int, ...], tuple[int, ...], int]


def _along_mesh(attributes: str) -> _Groups | None:
    found = re.search(r"replica_groups=mesh\[((?:'\w+'=\d+,?)+)\] \{((?:'\w+',?)+)\}", attributes)
    if not found:
        return None
    sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", found[1])}
    dimensions, along = tuple(sizes.values()), found[2].split(",")
    order = sorted(range(len(sizes)), key=lambda index: [*sizes][index] in along)
    return dimensions, tuple(order), math.prod(sizes[name] for name in along)


def _reshaped_range(attributes: str) -> _Groups | None:
    found = re.search(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if not found:
        return None
    dimensions = _sizes(found[2])
    return dimensions, _sizes(found[3]) if found[3] else tuple(range(len(dimensions))), int(found[1])


def _dot_flops(dot: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    del right
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    width = math.prod(left[dimension] for dimension in _sizes(contracted[1] if contracted else ""))
    return 2 * width * math.prod(dot.shapes[0][1])


def _convolution_flops(convolution: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Counts as XLA does: a multiply-add for each position of the window that meets an element, not padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.rest)
    left_labels, right_labels, result_labels = _match(labels, convolution.rest).groups()
    result = convolution.shapes[0][1]
    found = re.search(r"window=\{(.*?)\}", convolution.rest)
    window = dict(re.findall(r"(\w+)=([\w\-]+)", found[1] if found else ""))
    count = result[result_labels.index("b")] * result[result_labels.index("f")] * right[right_labels.index("i")]
    for index, dimension in enumerate(label for label in result_labels if label.isdigit()):

        def setting(name: str, default: str, index: int = index) -> str:
            return window[name].split("x")[index] if name in window else default

        low = int(setting("pad", "0_0").split("_")[0])
        count *= _window_hits(
            left[left_labels.index(dimension)],
            right[right_labels.index(dimension)],
            result[result_labels.index(dimension)],
            stride=int(setting("stride", "1")),
            low=low,
            left_dilation=int(setting("lhs_dilate", "1")),
            right_dilation=int(setting("rhs_dilate", "1")),
        )
    return 2 * count


def _window_hits(
    size: int, window: int, steps: int, stride: int, low: int, left_dilation: int, right_dilation: int
) -> int:
    """Counts, along one dimension, the pairs (step, position in the window) that meet an element of the input."""
    extent = (size - 1) * left_dilation + 1
    hits = 0
    for position in range(window):
        # At a step, this position of the window is at step * stride + offset in the dilated input.
        offset = position * right_dilation - low
        hits += sum(
            1
            for step in range(steps)
            if 0 <= step * stride + offset < extent and (step * stride + offset) % left_dilation == 0
        )
    return hits


def _parse_shape(array: str) -> tuple[str, tuple[int, ...]]:
    """Splits "f32[8,2]" into dtype and dimensions."""
    dtype, sizes = _match(_SHAPE.fullmatch(array), array).groups()
    return dtype, _sizes(sizes)


def _match(found: re.Match[str] | None, text: str) -> re.Match[str]:
    if found is None:
        raise SettingError(f"{_UNREADABLE}: {text}")
    return found


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _closing(text: str) -> int:
    """Returns the index of the parenthesis that closes one opened before `text`."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return index
    return len(text)
