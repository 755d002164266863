"""Gin configurations that are wrong in every way that came to mind: the shipped files with some bindings changed."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import gin
from hypothesis import strategies as st

from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.axes import AXIS_NAMES
from switch_tf.training.losses import Objective

RUNS = (
    "pretrain",
    "pretrain_c4",
    "pretrain_files",
    "pretrain_multilingual",
    "python_docs",
    "installed_docs",
    "finetune",
)
ROOT = pathlib.Path(__file__).parents[2]

_BOUND = re.compile(r"^([A-Za-z_][\w./]*)\s*=\s*(.*?)\s*(?:#.*)?$", re.MULTILINE)
_INCLUDED = re.compile(r'^include "(.+)"', re.MULTILINE)

_INTEGERS = (
    *("0", "-1", "1", "2", "3", "7", "12", "64", "-9223372036854775809", "9223372036854775808", "2147483648"),
    *("1000000007", "1" + "0" * 30, "0x" + "f" * 5000),
)
_FLOATS = ("0.0", "-0.5", "0.5", "1.0", "1.5", "1e-30", "1e30", "1e308", "1e999", "-1e999")
_CONSTANTS = ("None", "True", "False")
_TEXTS = (
    *("''", "' '", "'x'", "'float32'", "'bfloat16'", "'switch'", "'top_n'", "'expert_choice'", "'all'", "'blocks'"),
    *("'gs://'", "'\\n'", "'\\x00'", "'\\ud800'", "'é'", "'~'", "'../..'", "'[*'", "'%s'", "'{}'"),
)
_COLLECTIONS = (
    *("[]", "()", "{}", "[1, 2]", "(1, 5)", "(0, 0)", "[None]", "['x']", "[[[]]]", "{1: 2}", "{'x': None}", "{(): []}"),
    *("[@ModelConfig()]", "[%gin.REQUIRED]", "{'inputs': %NOTHING}", "{'num_choices': 3}", "{'num_choices': [3]}"),
    *("{'num_choices': -1}", "{'later_choice_threshold': 'x'}", "[@StopOnSignals()]"),
)
_REFERENCES = (
    *("@ModelConfig()", "@ModelConfig", "@Experiment()", "@Objective()", "@Adafactor", "@Adafactor()", "@train()"),
    *("@benchmark_averages()", "@benchmark_averages", "@InverseSquareRoot()", "@Constant", "@nothing()", "@nothing"),
    *("@a/b/ModelConfig()", "@a/WarmupAndDecay()", "@VocabularyFile()", "@gin.macro()", "@Decoding()", "@Cache()"),
    *("%NOTHING", "%gin.REQUIRED", "%MODEL_DIR", "%SEED", "%NUM_EXPERTS", "%MESH_SHAPE", "%a/NUM_EXPERTS"),
)
_NO_VALUES = (
    *("", "[", "'", "1 2", "x", "/x", "@", "%", "@()", "%()", "1e", "lambda: 0", "{'a'", "1 + 1", "0777", "nan", "inf"),
    *("...", "# 3", "b'x'", "1j", "{1, 2}", "print(1)", "'a' 'b'", "-", "--1", "\u0663", "true", "null", "@a.b.c/d()"),
)


Pools = dict[str, tuple[str, ...]]


class Configuration(NamedTuple):
    """The words of a command line: gin files, and bindings after them."""

    files: tuple[str, ...]
    bindings: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The arguments of a command."""
        return [f"--gin_file={name}" for name in self.files] + [f"--gin.{binding}" for binding in self.bindings]


def shipped(folder: str) -> list[str]:
    """The shipped gin files of a folder, by the names under which they are found."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "gin" / folder).glob("*.gin"))


@functools.cache
def bound(gin_file: str) -> dict[str, str]:
    """What a file and those that it includes bind, by name, in gin's syntax."""
    text = (ROOT / gin_file).read_text()
    included = [bound(name) for name in _INCLUDED.findall(text)]
    return {name: value for bindings in (*included, dict(_BOUND.findall(text))) for name, value in bindings.items()}


def defaults(*records: type) -> dict[str, str]:
    """The fields of settings dataclasses that have a default, in gin's syntax; files may bind them too."""
    return {
        f"{record.__name__}.{field.name}": repr(field.default)
        for record in records
        for field in dataclasses.fields(record)
        if field.default not in (dataclasses.MISSING, gin.REQUIRED)
    } | {"ModelConfig.router_settings": "{}", "ModelConfig.decoder_router_settings": "{}"}


def _mesh_shapes() -> st.SearchStrategy[str]:
    name = st.sampled_from(["data", "model", "x", "", " data"])
    size = st.sampled_from(
        ["1", "2", "3", "4", "8", "0", "-1", "1000000007", "x", "", "9" * 5000, "\u00b2", "\u0663", "1.0"]
    )
    dimension = st.builds("{}{}{}".format, name, st.sampled_from([":", ":", ":", "=", ""]), size)
    return st.builds(lambda sep, parts: repr(sep.join(parts)), st.sampled_from([",", ";", " "]), st.lists(dimension))


def _layout_rules() -> st.SearchStrategy[str]:
    axis = st.sampled_from([*sorted(AXIS_NAMES), "nothing", ""])
    rule = st.builds("{}:{}".format, axis, st.sampled_from(["data", "model", "x", "", "data:model"]))
    return st.builds(lambda parts: repr(",".join(parts)), st.lists(rule, max_size=5))


def _lengths() -> st.SearchStrategy[str]:
    key = st.sampled_from(["'inputs'", "'targets'", "'x'", "1", "None"])
    value = st.sampled_from([*_INTEGERS, "1.5", "None", "'8'", "%SEED"])
    pairs = st.dictionaries(key, value, max_size=3)
    return pairs.map(lambda found: "{" + ", ".join(f"{name}: {length}" for name, length in found.items()) + "}")


def _fitting(name: str, value: str, pools: Pools) -> st.SearchStrategy[str]:
    """Values of the type of a setting that the files bind to `value`, most of them out of its range."""
    special = {"MESH_SHAPE": _mesh_shapes, "LAYOUT_RULES": _layout_rules, "TASK_FEATURE_LENGTHS": _lengths}
    short = name.rpartition(".")[2].upper()
    if short in special:
        return special[short]()
    if re.fullmatch(r"\d+", value):
        number = int(value)
        near = [str(near) for near in (number + 1, 2 * number, number // 3, -number)]
        return st.sampled_from([*pools["integers"], *near])
    kind = "texts" if value[:1] in ("'", '"') else "floats" if value[:1].isdigit() else None
    kind = {"True": "constants", "False": "constants", "[]": "collections", "{}": "collections"}.get(value, kind)
    return st.sampled_from(pools[kind]) if kind else st.one_of(*map(st.sampled_from, pools.values()))


def _values(name: str, bindings: dict[str, str], pools: Pools) -> st.SearchStrategy[str]:
    """Values for a setting: of its type for most, and of any type, or none, for the rest."""
    value = bindings[name]
    while value[:1] == "%" and value[1:] in bindings:
        value = bindings[value[1:]]
    fitting, anything = _fitting(name, value, pools), st.one_of(*map(st.sampled_from, pools.values()))
    return st.one_of(*[fitting] * 8, anything, st.sampled_from([f"%{name}", *_NO_VALUES]))


def _misspelled(name: str) -> st.SearchStrategy[str]:
    """The name in another case, in a scope, without a letter, with one more."""
    return st.one_of(
        st.sampled_from(
            [name.lower(), name.upper(), name.swapcase(), f"a/{name}", f"{name}.x", f".{name}", f"{name}/"]
        ),
        st.integers(0, len(name) - 1).map(lambda index: name[:index] + name[index + 1 :]),
        st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable() and not set(text) & set("= ")),
    )


ALL_KINDS: Pools = {
    "integers": _INTEGERS,
    "floats": _FLOATS,
    "constants": _CONSTANTS,
    "texts": _TEXTS,
    "collections": _COLLECTIONS,
    "references": _REFERENCES,
    "no_values": _NO_VALUES,
}


@st.composite
def shipped_experiments(draw: st.DrawFn, models: Sequence[str]) -> tuple[str, ...]:
    """Draws shipped files that belong together: a model, and perhaps a run, a teacher, a precision and a layout."""
    model = draw(st.sampled_from(models))
    run = draw(st.sampled_from(["", *(f"gin/runs/{name}.gin" for name in RUNS)]))
    teacher = f"gin/runs/distill{'_finetuned' if run.endswith('finetune.gin') else ''}.gin"
    precision = draw(st.sampled_from(["", *shipped("precision")])) if "switch" in model else ""
    layout = draw(st.one_of(st.just(""), st.sampled_from(shipped("layouts"))))
    return tuple(filter(None, (model, run, run and draw(st.sampled_from(["", "", teacher])), precision, layout)))


@st.composite
def configurations(
    draw: st.DrawFn,
    experiments: st.SearchStrategy[tuple[str, ...]],
    pools: Pools = ALL_KINDS,
    left_alone: frozenset[str] = frozenset(),
) -> Configuration:
    """Draws gin files, and one to three bindings of names in them, some misspelled.

    Args:
      draw: of Hypothesis.
      experiments: draws the files.
      pools: values in gin's syntax, by their kinds.
      left_alone: names that are not bound.
    """
    chosen = draw(experiments)
    shipped_bindings = {name: value for file in chosen for name, value in bound(file).items()}
    records = (ModelConfig, Objective) if "train.objective" in shipped_bindings else (ModelConfig,)
    shipped_bindings = defaults(*records) | shipped_bindings
    names = sorted(shipped_bindings.keys() - left_alone)
    bindings = []
    for name in draw(
        st.lists(st.sampled_from(names), min_size=1, max_size=draw(st.sampled_from([1, 1, 3])), unique=True)
    ):
        value = draw(_values(name, shipped_bindings, pools))
        written = draw(_misspelled(name)) if draw(st.integers(0, 19)) == 0 else name
        bindings.append(f"{written}={value}")
    return Configuration(chosen, tuple(bindings))
