"""The house rules of the source tree that a machine can check: rooms, arrows, names, lengths."""

import ast
import collections
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("switch_tf", "tasks", "tpu") for path in (ROOT / folder).rglob("*.py"))

# Each room with the rooms that its modules may import, besides their own. A room is a package or a module, by its path.
ALLOWED = {
    "switch_tf.cli": (
        *("tpu.jobs", "tpu.precompile", "tpu.topologies", "switch_tf.report", "switch_tf.runs", "switch_tf.planning"),
        *("switch_tf.interop", "switch_tf.models", "switch_tf.partitioning", "switch_tf.data", "switch_tf.storage"),
        *("switch_tf.serving", "switch_tf.startup", "switch_tf.compat", "switch_tf.errors"),
    ),
    "switch_tf.report": (
        *("switch_tf.runs", "switch_tf.evaluation", "switch_tf.planning", "switch_tf.health", "switch_tf.data"),
        *("switch_tf.storage", "switch_tf.errors"),
    ),
    "tpu.jobs": ("tpu.topologies", "switch_tf.runs", "switch_tf.errors"),
    "tpu.precompile": (
        *("tpu.topologies", "switch_tf.runs", "switch_tf.planning", "switch_tf.training", "switch_tf.decoding"),
        *("switch_tf.models", "switch_tf.layers", "switch_tf.partitioning", "switch_tf.compat", "switch_tf.errors"),
    ),
    "tpu.topologies": ("switch_tf.errors",),
    "switch_tf.runs": (
        *("switch_tf.evaluation", "switch_tf.planning", "switch_tf.interop", "switch_tf.export", "switch_tf.health"),
        *("switch_tf.training", "switch_tf.decoding", "switch_tf.checkpoints", "switch_tf.models"),
        *("switch_tf.partitioning", "switch_tf.layers", "switch_tf.data", "switch_tf.storage", "switch_tf.compat"),
        "switch_tf.errors",
    ),
    "switch_tf.evaluation": (
        *("switch_tf.training", "switch_tf.decoding", "switch_tf.models", "switch_tf.partitioning", "switch_tf.data"),
        "switch_tf.errors",
    ),
    "switch_tf.planning": (
        *("switch_tf.training", "switch_tf.models", "switch_tf.layers", "switch_tf.partitioning", "switch_tf.compat"),
        "switch_tf.errors",
    ),
    "switch_tf.export": (
        *("switch_tf.training", "switch_tf.decoding", "switch_tf.models", "switch_tf.partitioning", "switch_tf.compat"),
        "switch_tf.errors",
    ),
    "switch_tf.serving": ("switch_tf.storage", "switch_tf.errors"),
    "switch_tf.interop": (
        *("switch_tf.checkpoints", "switch_tf.models", "switch_tf.layers", "switch_tf.partitioning"),
        *("switch_tf.data", "switch_tf.storage", "switch_tf.errors"),
    ),
    "switch_tf.training": ("switch_tf.models", "switch_tf.layers", "switch_tf.partitioning", "switch_tf.errors"),
    "switch_tf.decoding": ("switch_tf.models", "switch_tf.layers", "switch_tf.partitioning", "switch_tf.errors"),
    "switch_tf.models": ("switch_tf.layers", "switch_tf.partitioning", "switch_tf.errors"),
    "switch_tf.layers": ("switch_tf.partitioning", "switch_tf.compat", "switch_tf.errors"),
    "switch_tf.checkpoints": ("switch_tf.partitioning", "switch_tf.storage", "switch_tf.errors"),
    "switch_tf.partitioning": ("switch_tf.compat", "switch_tf.errors"),
    "tasks": ("switch_tf.data", "switch_tf.storage", "switch_tf.errors"),
    "switch_tf.data": ("switch_tf.compat", "switch_tf.storage", "switch_tf.errors"),
    "switch_tf.health": (),
    "switch_tf.storage": ("switch_tf.errors",),
    "switch_tf.compat": (),
    "switch_tf.errors": (),
    "switch_tf.installation": (),
    "switch_tf.startup": ("switch_tf.compat",),
    "switch_tf": ("switch_tf.runs", "switch_tf.installation"),
    "tpu": (),
}
# Their packages make them plain.
MAY_SHARE_A_NAME = {"__init__", "report"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def room_of(module: str) -> str:
    """The longest room that a module is, or is in."""
    packages = ("tpu", "switch_tf")  # As rooms they are their __init__ alone.
    rooms = [room for room in ALLOWED if module == room or (room not in packages and module.startswith(room + "."))]
    assert rooms, f"{module} is in no room: give it one, here and in docs/architecture.md"
    return max(rooms, key=len)


def imports(source: str, everywhere: bool = False) -> set[str]:
    """The project's own modules that a module imports: when it is imported itself, or `everywhere` in its functions."""
    tree = ast.parse(source)
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            of_module = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` names the package on the way to the module.
            found |= of_module & MODULES.keys() or {node.module}
    return found & MODULES.keys()


def wrong_arrows(module: str, source: str) -> set[str]:
    """The rooms that a module of the source imports and may not."""
    room = room_of(module)
    used = {room_of(name) for name in imports(source, everywhere=True)}
    return used - {room, *ALLOWED[room]}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    wrong = wrong_arrows(module, MODULES[module].read_text())
    assert not wrong, f"{module} may not import {sorted(wrong)}"


def test_an_arrow_up_is_found():
    assert wrong_arrows("switch_tf.layers.moe", "from switch_tf.runs import loop") == {"switch_tf.runs"}
    assert wrong_arrows("switch_tf.data.batches", "def f():\n    import tasks.glue\n") == {"tasks"}
    assert not wrong_arrows("switch_tf.cli.main", "from switch_tf.runs import loop")


def test_the_allowed_arrows_make_no_circle():
    levels: dict[str, int] = {}

    def level(room: str, way: tuple[str, ...] = ()) -> int:
        assert room not in way, f"circle: {' -> '.join((*way, room))}"
        if room not in levels:
            levels[room] = 1 + max((level(below, (*way, room)) for below in ALLOWED[room]), default=0)
        return levels[room]

    for room in ALLOWED:
        level(room)


def test_imports_make_no_circle():
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in done:
            return
        assert name not in way, f"circle: {' -> '.join((*way, name))}"
        for imported in imports(MODULES[name].read_text()) - {name}:
            visit(imported, (*way, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_two_modules_share_a_name():
    places = collections.defaultdict(list)
    for name, path in MODULES.items():
        # A command's module has the name of the command.
        if not name.startswith("switch_tf.cli.") and path.stem not in MAY_SHARE_A_NAME:
            places[path.stem].append(name)
    shared = {stem: names for stem, names in places.items() if len(names) > 1}
    assert not shared


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


def test_private_apis_of_other_packages_are_in_compat():
    packages = r"tensorflow\.python|jax\._src|jaxlib|keras\.src"
    private = re.compile(rf"^\s*(?:from|import) (?:{packages})\b", re.MULTILINE)
    users = {name for name, path in MODULES.items() if private.search(path.read_text())}
    assert users == {"switch_tf.compat"}


def calls(path: pathlib.Path) -> list[tuple[str, set[str]]]:
    """What a module calls, and with which keywords."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), {word.arg or "**" for word in node.keywords}) for node in nodes]


def test_no_pickle():
    """Reading one can run anything. Torch's files are pickles: their reader looks up no name but those of tensors."""
    unsafe = re.compile(r"^\s*(?:import|from) (?:_?pickle|dill|cloudpickle|shelve|marshal|joblib)\b", re.MULTILINE)
    sources = [*SOURCES, *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    assert [path for path in sources if unsafe.search(path.read_text())] == [ROOT / "switch_tf/interop/torch_files.py"]


def test_yaml_is_loaded_safely():
    """By a subclass of the loader of `yaml.safe_load`, in one place."""
    users = {name: path.read_text() for name, path in MODULES.items() if re.search("import yaml", path.read_text())}
    assert users.keys() == {"tpu.jobs.spec"}
    named = set(re.findall(r"\byaml\.(\w+)", users["tpu.jobs.spec"]))
    assert named == {"safe_load", "SafeLoader", "load", "org", "YAMLError"}  # "org" is of YAML's own tags.
    assert re.findall(r"yaml\.load\((.*)\)", users["tpu.jobs.spec"]) == ["file, _safe_loader()"]


def test_no_text_becomes_a_program():
    """No shell, no `eval`, no objects from files. (gin imports the modules that gin files name.)"""
    for path in SOURCES:
        for name, keywords in calls(path):
            assert name not in ("eval", "exec", "os.system", "os.popen", "torch.load", "pickle.load"), f"{path}: {name}"
            assert not keywords & {"shell", "allow_pickle"}, f"{path}: {name} with {keywords}"


def test_modules_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert max(lengths.values()) <= 400, max(lengths.items(), key=lambda item: item[1])


def test_no_test_imports_a_test():
    """Helpers are in tests/support: a module of tests that is imported runs its fixtures twice, or not at all."""
    pattern = re.compile(r"^\s*(?:from|import) tests\.(?:\w+\.)*test_", re.MULTILINE)
    importers = [path for path in (ROOT / "tests").rglob("*.py") if pattern.search(path.read_text())]
    assert not importers
