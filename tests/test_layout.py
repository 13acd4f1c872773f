"""The shape of the house: imports go downwards, libraries stay in their rooms, no file hides another module."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("distgan/**/*.py"), *ROOT.glob("shards/**/*.py")])
LAYERS = [  # top to bottom; a module imports from its own layer and those below
    {"train", "cli", "api"},
    {"commands"},
    {"trainer", "per_class"},
    {"steps", "gan", "data", "run", "reporting"},
    {"evaluation"},
    {"networks", "losses", "optimizers", "images"},
    {"runtime"},
    {"config"},
    {"errors", "text"},
]
LIBRARY_OWNERS = {  # the modules that may import a library
    "accelerate": {"runtime", "run/session", "steps", "gan", "commands/bench"},
    "wandb": {"reporting/wandb_sink"},
    "tensorboard": {"reporting/tensorboard_sink"},
    "rich": {"reporting/console"},
    "typer": {"train", "cli"},
    "webdataset": {"shards/verify", "shards/sources/webdataset_tars"},
}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(module: str) -> int | None:
    """Number of the layer of a distgan module."""
    return next((number for number, modules in enumerate(LAYERS) if module in modules), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    """Nothing imports upwards; shards know nothing of distgan; nothing imports a door."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    imports = imported_modules(path)
    if parts[0] == "shards":
        assert not {
            name
            for name in imports
            if name.split(".")[0] in ("distgan", "accelerate", "wandb", "rich", "typer")
        }
        assert "webdataset" not in imports or "/".join(parts) in LIBRARY_OWNERS["webdataset"]
        return
    assert "distgan.train" not in imports, "it would replace the function `distgan.train`"
    if parts[1] == "__init__":  # imports on first use only, which tests/test_api.py checks
        return
    own = level(parts[1])
    assert own is not None, f"{path} has no place in LAYERS"
    for name in imports:
        words = name.split(".")
        if words[0] == "distgan" and len(words) > 1 and level(words[1]) is not None:
            assert level(words[1]) >= own, f"{path} imports {name}"
        if words[0] in LIBRARY_OWNERS:
            assert {"/".join(parts[1:]), parts[1]} & LIBRARY_OWNERS[words[0]], (
                f"{path} imports {words[0]}"
            )


def test_shards_import_each_other_in_no_circle() -> None:
    """Each module can be read after those that it imports."""
    imports = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported_modules(path)
        for path in ROOT.glob("shards/**/*.py")
    }
    TopologicalSorter({name: found & set(imports) for name, found in imports.items()}).prepare()


def test_no_file_hides_another_module() -> None:
    """A file in distgan/ named like an installed module would shadow it when the door is started by path."""
    for path in ROOT.glob("distgan/*"):
        if path.name not in ("__init__.py", "__pycache__") and (
            path.suffix == ".py" or path.is_dir()
        ):
            assert find_spec(path.stem) is None, path.name


def test_files_stay_readable() -> None:
    """A file past 470 lines wants to be two."""
    assert {
        str(path): length for path in FILES if (length := len(path.read_text().splitlines())) > 470
    } == {}


def test_help_is_light() -> None:
    """The doors import neither torch nor accelerate before they have work to do."""
    heavy = "('torch', 'accelerate', 'sklearn', 'wandb')"
    code = (
        f"import sys, distgan.train, distgan.cli; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
