"""The layout: imports go downwards, each library has one place, files and lines stay short."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("distgan/**/*.py"), *ROOT.glob("shards/**/*.py")])
MAX_LINES = 350
LAYERS = [  # top to bottom; a module imports from its own layer and those below
    {"__main__", "train", "cli", "api"},
    {"commands"},
    {"trainer", "per_class"},
    {"steps", "gan", "data", "draws", "run", "reporting"},
    {"evaluation"},
    {"labels"},
    {"networks", "losses", "optimizers", "images"},
    {"runtime"},
    {"config"},
    {"errors", "text"},
]
LIBRARY_OWNERS = {  # the modules that may import a library
    "accelerate": {"runtime", "run/session", "steps", "gan"},
    "wandb": {"reporting/wandb_sink", "reporting/wandb_workspace"},
    "wandb_workspaces": {"reporting/wandb_workspace"},
    "tensorboard": {"reporting/tensorboard_sink"},
    "rich": {"reporting/console"},
    "typer": {"train", "cli"},
    "huggingface_hub": {"runtime/hub"},
    "webdataset": {"shards/verify_shard", "shards/sources/webdataset_tars"},
}


def imported_modules(path: Path) -> set[str]:
    """Return the absolute names of everything that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(module: str) -> int | None:
    """Return the number of the layer of a distgan module, None for a module without one."""
    return next((number for number, modules in enumerate(LAYERS) if module in modules), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    """No module imports from a higher layer; `shards` imports nothing of distgan."""
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


def test_imports_within_shards_have_no_cycle() -> None:
    """The modules can be sorted so that each comes after those that it imports."""
    imports = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported_modules(path)
        for path in ROOT.glob("shards/**/*.py")
    }
    TopologicalSorter({name: found & set(imports) for name, found in imports.items()}).prepare()


def test_no_file_shadows_an_installed_module() -> None:
    """`python distgan/train.py` puts distgan/ first on the path, before installed modules."""
    for path in ROOT.glob("distgan/*"):
        if path.name not in ("__init__.py", "__main__.py", "__pycache__") and (
            path.suffix == ".py" or path.is_dir()
        ):
            assert find_spec(path.stem) is None, path.name


def test_files_are_short() -> None:
    """No file is longer than MAX_LINES, tests included."""
    files = [*FILES, *ROOT.glob("tests/**/*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_entry_points_import_no_heavy_libraries() -> None:
    """Importing the command line imports neither torch nor accelerate."""
    heavy = "('torch', 'accelerate', 'sklearn', 'wandb')"
    code = (
        f"import sys, distgan.train, distgan.cli; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
