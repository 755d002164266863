"""The house rules of the source tree that a machine can check."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("switch_tf", "tasks", "tpu") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path: pathlib.Path) -> set[str]:
    """The project's own modules that a module imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES}


def test_imports_make_no_circle():
    state: dict[str, str] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        if state.get(name) == "done":
            return
        assert name not in way, f"circle: {' -> '.join((*way, name))}"
        for imported in imports(MODULES[name]) - {name}:
            visit(imported, (*way, name))
        state[name] = "done"

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize(
    ("room", "may_use"),
    [
        ("switch_tf.layers", ("switch_tf.layers", "switch_tf.partitioning.axes", "switch_tf.errors")),
        ("switch_tf.partitioning", ("switch_tf.partitioning", "switch_tf.errors")),
        ("switch_tf.models", ("switch_tf.models", "switch_tf.layers", "switch_tf.errors")),
        (
            "switch_tf.interop",
            ("switch_tf.interop", "switch_tf.models", "switch_tf.layers", "switch_tf.errors"),
        ),
        (
            "tasks",
            (
                "tasks",
                "switch_tf.errors",
                "switch_tf.storage",
                "switch_tf.data.text_files",
                "switch_tf.data.sentencepiece",
            ),
        ),
    ],
)
def test_arrows_point_down(room, may_use):
    packages = {"switch_tf", "switch_tf.partitioning"}  # Named on the way to a module inside of them.
    for name, path in MODULES.items():
        if name == room or name.startswith(room + "."):
            wrong = {used for used in imports(path) - packages if not used.startswith(may_use)}
            assert not wrong, f"{name} uses {wrong}"


def test_the_library_knows_no_data_set_and_no_cloud():
    for name, path in MODULES.items():
        # The command line stands above both.
        if name.startswith("switch_tf") and not name.startswith("switch_tf.cli."):
            assert not re.search(r"^\s*(from|import) (tasks|tpu)\b", path.read_text(), re.MULTILINE), name


def new_axis_slices(source: str) -> list[int]:
    """Lines that index with None (`x[:, None]`, `x[None]`); types in square brackets (`Iterator[None]`) are none."""

    def adds_axis(node: ast.AST) -> bool:
        if not isinstance(node, ast.Subscript) or (isinstance(node.value, ast.Name) and node.value.id[0].isupper()):
            return False
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return any(ast.unparse(part) in ("None", "tf.newaxis", "np.newaxis") for part in parts)

    return [node.lineno for node in ast.walk(ast.parse(source)) if adds_axis(node)]


def test_no_new_axis_slices():
    """`x[:, None]` crashes the process where `x` is a DTensor; `tf.expand_dims` does not."""
    assert new_axis_slices("x[:, None]\ny: Iterator[None]\nx[tf.newaxis]\nx[0, :]\nx[..., None]") == [1, 3, 5]
    for path in SOURCES:
        if "switch_tf" in path.relative_to(ROOT).parts:
            assert not new_axis_slices(path.read_text()), path


def test_gin_stays_gin_config():
    assert not (ROOT / "gin" / "__init__.py").exists()


def test_modules_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES}
    assert max(lengths.values()) <= 400, max(lengths.items(), key=lambda item: item[1])
