"""The rules of the map: who imports whom, and who alone may do what."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(p for folder in ("app", "models", "data") for p in ROOT.glob(f"{folder}/*.py"))]
)


def imported_folders(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize(
    ("folder", "forbidden"), [("app", {"models", "data"}), ("models", {"data", "app"}), ("data", {"models"})]
)
def test_imports_run_one_way(folder, forbidden):
    for path in ROOT.glob(f"{folder}/*.py"):
        assert not imported_folders(path) & (forbidden | {"train", "evaluate"}), path


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [
        (r"omegaconf", "app/config.py"),
        (r"filelock", "app/run_folder.py"),
        (r"SummaryWriter\(", "app/tensorboard.py"),
        (r"optimizer\.step\(\)$", "app/engine.py"),
        (r"\[\"lr\"\] (\*|/|\+|-)?= ", "app/learning_rates.py"),
        (r"torch\.(save|load)\(", "app/checkpoint.py"),
        (r"torch\.distributed", "app/distributed.py"),
    ],
)
def test_one_owner_each(pattern, owner):
    users = {
        str(path.relative_to(ROOT)) for path in SOURCES if any(re.search(pattern, line) for line in code_lines(path))
    }
    if owner == "app/checkpoint.py":
        users -= {"models/pretrained.py"}  # reads weights that are no checkpoint
    assert users <= {owner}


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
