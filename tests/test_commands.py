"""Each command of README and docs does what it is there for: run as it stands, with little to learn.

In one folder, page by page from top to bottom, as a reader would: a command may need what an earlier one has left.
What takes long whatever is changed (benchmarks, make test, installations) is only looked up.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FIRST = ("README.md", "docs/tour.md", "docs/data.md", "docs/evaluation.md")  # then the others
PAGES = [*FIRST, *sorted({str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")} - {*FIRST})]
PYTHON = r"(?:\.venv/bin/)?python3?"
COMMAND = rf"(?:{PYTHON} (?:-m |\w+\.py)|make \w)"
SHORT = ["run.limit_batches=2", "data.image_size=16"]
LOOKED_UP = ("tests.benchmarks", "pytest", "pip", "venv")  # modules
SERVERS = ("tensorboard.main",)


def commands_of(text: str) -> list[str]:
    """Those in indented or fenced blocks and in code spans, in their order, without comments."""
    joined = re.sub(r" *\\\n\s*", " ", text)
    blocks = re.findall(rf"^ *({COMMAND}.*)$", joined, re.MULTILINE)
    spans = re.findall(rf"`({COMMAND}[^`]*)`", re.sub(r"\n\s*", " ", joined))
    found = {shlex.join(shlex.split(command, comments=True)): joined.find(command) for command in [*blocks, *spans]}
    return sorted(found, key=found.get)


TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
ALL = [(page, command) for page, text in TEXTS.items() for command in commands_of(text)]
FIRST_PAGE = {command: page for page, command in reversed(ALL)}
COMMANDS = [(FIRST_PAGE[command], command) for command in dict.fromkeys(command for _, command in ALL)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder that has all of the repository, and in which runs and data of its own arise."""
    folder = tmp_path_factory.mktemp("reader")
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "runs", "my_data", "my_digits"):
            (folder / path.name).symlink_to(path)
    return folder


def test_commands_are_found():
    text = "  python train.py --config a.yaml \\\n        run.seed=1   # why\n\nthen `python -m app.b c` or `make all`."
    assert commands_of(text) == ["python train.py --config a.yaml run.seed=1", "python -m app.b c", "make all"]
    assert {page for page, _ in COMMANDS} >= {"README.md", "docs/data.md", "docs/benchmarks.md"}
    assert len(COMMANDS) == len({command for _, command in ALL}) > 25


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_the_command_works(reader, page, command):
    program, *arguments = shlex.split(command)
    if program == "make":
        call(["make", "--dry-run", *arguments], reader)
        return
    module = arguments[1] if arguments[0] == "-m" else None
    if module and module.startswith(LOOKED_UP):
        assert importlib.util.find_spec(module) is not None
    elif module in SERVERS:
        serve([sys.executable, *arguments, "--port", "0"], reader)
    else:
        trains = arguments[0] == "train.py" and "--replay" not in arguments
        call([sys.executable, *arguments, *(SHORT if trains else [])], reader)


def call(command: list[str], folder) -> None:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def serve(command: list[str], folder) -> None:
    """Until it says where it listens."""
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("http://" in line for line in process.stderr)
        finally:
            process.terminate()
