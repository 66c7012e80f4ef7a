"""What an error prints; and standard streams that are closed, full or no longer read, in real processes."""

import io
import os
import subprocess
import sys
import time

import pytest

from app.messages import Findings, format_table, in_words, nearest, progress_bar, report_error, shortened, warn
from tests.conftest import ROOT

PROGRAM = """
import os, sys
from app.messages import survive_lost_output
survive_lost_output()
file = open(sys.argv[1], "w")
assert file.fileno() > 2
for i in range(20_000):
    print("a line", i)
    print("an error", i, file=sys.stderr)
sys.stdout.flush()
os.write(1, b"from below")
file.write("done")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "lost"),
    [
        (">&-", "stdout"),
        (">/dev/full", "stdout"),
        ("| head -1", "stdout"),
        ("2>&-", "stderr"),
        ("2>/dev/full", "stderr"),
        (">&- 2>&-", "both"),
        ("<&- >&- 2>&-", "both"),
        (">/dev/full 2>&1", "both"),
        ("2>&1 | head -1", "both"),
    ],
)
def test_a_process_that_cannot_write_its_output_goes_on_to_its_end(redirection, lost, unbuffered, tmp_path):
    shell = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" "$2" {redirection}']
    arguments = [sys.executable, PROGRAM, str(tmp_path / "file")]
    environment = {"PYTHONUNBUFFERED": unbuffered, "PATH": os.environ["PATH"]}
    result = subprocess.run([*shell, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "file").read_text() == "done"
    if lost == "stderr":
        assert result.stdout.splitlines() == [*(f"a line {i}" for i in range(20_000)), "from below"]
    else:
        assert len(result.stdout.splitlines()) == ("head" in redirection)
    errors = [f"an error {i}" for i in range(20_000)] if lost == "stdout" else []
    assert result.stderr.splitlines() == errors


def test_what_can_be_written_arrives_whole_whatever_the_encoding(tmp_path):
    program = "from app.messages import survive_lost_output as s; s(); print('\\u540d', 1); print('x', end='')"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": os.environ["PATH"]}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"\\u540d 1\nx", b"")


@pytest.mark.parametrize(
    ("error", "prepared", "code", "text"),
    [
        (Findings(["a: found 1,\n not 2", "c: missing"]), False, 2, "error: a: found 1, not 2\nerror: c: missing\n"),
        (ValueError("one\ntwo"), False, 2, "error: one two\n"),
        (ValueError("one\ntwo"), True, 1, "error: ValueError: one two (--debug shows where)\n"),
        (FloatingPointError("one\ntwo"), True, 1, "error: one two\n"),
        (KeyError("one"), False, 1, "error: KeyError: 'one' (--debug shows where)\n"),
    ],
)
def test_an_error_is_one_line_and_findings_are_a_line_each(error, prepared, code, text, capsys):
    assert report_error(error, prepared=prepared) == code
    assert capsys.readouterr().err == text


def test_the_nearest_name_is_found_whatever_its_case():
    assert nearest("adamw", ["SGD", "AdamW"]) == "did you mean 'AdamW'? known here: SGD, AdamW"
    assert nearest("zzz", ["SGD"]) == "known here: SGD"


def test_sizes_are_told_in_the_unit_that_suits():
    sizes = (2048, 999 * 2**10, 31 * 2**20, 1.5 * 2**30, 2e12)
    assert [in_words(size) for size in sizes] == ["2.0 KiB", "999 KiB", "31 MiB", "1.5 GiB", "1,863 GiB"]


def on_screen(text: str) -> list[str]:
    """The lines of a terminal, where what follows a carriage return is written over the line."""
    lines = []
    for line in text.split("\n"):
        row = ""
        for part in line.split("\r"):
            row = part + row[len(part) :]
        lines.append(row.rstrip())
    return lines


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_and_errors_beside_a_progress_bar_have_lines_of_their_own(terminal, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    try:
        with progress_bar([1, 2, 3], "epoch 1") as batches:
            for batch in batches:
                time.sleep(0.6)  # a bar is shown after a second
                batches.refresh()
                if batch == 2:
                    warn("one\ntwo")
            raise FloatingPointError("not finite")
    except FloatingPointError as error:
        report_error(error, prepared=True)
    lines = on_screen(screen.getvalue())
    bars = [line for line in lines if line.startswith("epoch 1: ")]
    assert [line for line in lines if line not in bars] == ["warning: one\\ntwo", "error: not finite", ""]
    assert len(bars) == (0 if terminal else 3) and ("\r" in screen.getvalue()) == terminal


def test_a_row_of_a_table_is_one_line_whatever_its_cells_hold():
    table = format_table([("class", "rows"), ("a\nb\t\u2028", "10")])
    assert table.splitlines() == ["class         rows", "------------------", "a\\nb\\t\\u2028    10"]


def test_a_text_is_cut_where_it_is_too_long():
    assert [shortened(text, 4) for text in ("", "a bc", "a bcd")] == ["", "a bc", "a b…"]
