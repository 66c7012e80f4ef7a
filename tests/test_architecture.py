"""The rules of the map: who imports whom, and who alone may do what."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRIES = sorted(ROOT.glob("*.py"))
PARTS = {folder: sorted(ROOT.glob(f"{folder}/**/*.py")) for folder in ("app", "models", "data")}
# What puts the parts together, and so may import all of them.
COMMANDS = sorted(ROOT.glob("app/commands/*.py"))
SOURCES = [*ENTRIES, *(path for paths in PARTS.values() for path in paths)]
# All that models and data may know of a run.
SHARED = ("app.messages", "app.randomness", "app.section")


def imported_modules(path: Path) -> set[str]:
    """Full names, wherever in the file the import stands: `from app import config` is app.config."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = node.module in ("app", "models", "data")
            modules |= {f"{node.module}.{alias.name}" for alias in node.names} if whole else {node.module}
    return modules


def test_every_file_of_the_program_is_looked_into():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("no git repository here")
    assert {ROOT / name for name in listed if not name.startswith("tests/")} <= set(SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    modules = imported_modules(path)
    folder = path.relative_to(ROOT).parts[0]
    if path not in ENTRIES:
        assert not modules & {"train", "evaluate"}
    if folder == "app" and path not in COMMANDS:
        assert not {module for module in modules if module.split(".")[0] in ("models", "data")}
        assert not {module for module in modules if module.startswith("app.commands")}
    if folder in ("models", "data"):
        other = {"models": "data", "data": "models"}[folder]
        assert not {module for module in modules if module.split(".")[0] == other}
        assert not {m for m in modules if m.split(".")[0] == "app" and not m.startswith(SHARED)}


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [
        (r"omegaconf", "app/config.py"),
        (r"filelock", "app/records/run_folder.py"),
        (r"SummaryWriter\(", "app/records/tensorboard.py"),
        (r"optimizer\.step\(\)$", "app/training/step.py"),
        (r"\[\"lr\"\] (\*|/|\+|-)?= ", "app/learning_rates/learning_rates.py"),
        (r"torch\.(save|load)\(", "app/records/checkpoint.py"),
    ],
)
def test_one_owner_each(pattern, owner):
    users = {
        str(path.relative_to(ROOT)) for path in SOURCES if any(re.search(pattern, line) for line in code_lines(path))
    }
    if owner == "app/records/checkpoint.py":
        users -= {"models/pretrained.py"}  # reads weights that are no checkpoint
    assert users == {owner}


def test_nothing_but_data_names_a_data_set():
    users = [path for path in SOURCES if path not in PARTS["data"] and "digits" in "\n".join(code_lines(path))]
    assert users == []


def code_lines(path: Path) -> list[str]:
    """Without comments and docstrings."""
    return ast.unparse(_without_docstrings(ast.parse(path.read_text()))).replace("'", '"').splitlines()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return tree
