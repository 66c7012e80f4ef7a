"""README is short, its map is complete, and what README and docs name exists."""

import importlib
import json
import re
import shlex

import pytest
import yaml

import train
from app.commands.root_config import parse_config
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
FILE = r"[\w./-]+\.(?:py|yaml|json|md|png)\b"
FOLDERS = ("app", "models", "data", "configs", "docs", "tests")


def files_in_map() -> set[str]:
    """Each file that the map names, and each room, as paths from the root."""
    block = re.search(r"^## Map\n+```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[1]
    named, room = set(), ""
    for line in block.splitlines():
        if not line.startswith(" "):
            first, _, line = line.partition(" ")
            named.add(first)
            room = first if first.endswith("/") else ""
        named |= {room + name for name in re.findall(FILE, line)}
    return named


def test_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_every_path_in_the_map_exists():
    assert len(files_in_map()) > 50
    assert [path for path in files_in_map() if not (ROOT / path).exists()] == []


def test_every_source_file_is_in_the_map():
    sources = [path for folder in ("app", "models", "data") for path in ROOT.glob(f"{folder}/**/*.py")]
    names = {
        str(path.relative_to(ROOT).as_posix()) for path in [*ROOT.glob("*.py"), *sources] if path.name != "__init__.py"
    }
    assert names - files_in_map() == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page):
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    own = [target for target in targets if "://" not in target]
    assert [target for target in own if not (ROOT / page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_in_the_text_exist(page):
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*", PAGES[page])
    assert [path for path in named if not (ROOT / path.rstrip(".")).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/promises.md"])
def test_shown_config_is_valid(page, tree):
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        for section, values in yaml.safe_load(block).items():
            tree[section] |= values
    parse_config(tree)


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("tests/benchmarks/*.py")))
def test_a_benchmark_finds_what_it_imports(name):
    importlib.import_module(f"tests.benchmarks.{name}")


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart_with_the_command_that_is_given(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    python train.py ([^\n]*run.limit_batches(?:.*\\\n)*.*)", page, re.MULTILINE)
    monkeypatch.chdir(ROOT)
    assert train.main([*shlex.split(command.replace("\\\n", "")), f"run.folder={tmp_path}"]) == 0
    records = map(json.loads, (tmp_path / "one_batch" / "metrics.jsonl").read_text().splitlines())
    readings = [(record["loss"], record["accuracy"]) for record in records if record["kind"] == "train"]
    assert len(readings) == 20 and 2.2 < readings[0][0] < 2.4 and readings[0][1] < 0.3
    assert readings[4][0] < 1 and readings[-1][0] < 0.002 and readings[-1][1] == 1
