"""What is printed: errors and their exit codes, warnings, progress, sizes, tables; output that cannot be written."""

import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from torch.utils.data import DataLoader
from tqdm import tqdm


class Findings(ValueError):
    """All that is wrong with an input, one line each."""

    def __init__(self, lines: list[str]):
        super().__init__("\n".join(" ".join(line.split()) for line in lines))


def closest(word: str, known: list[str]) -> str | None:
    """The nearest known name, whatever its case; None if none is near."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return lower[near[0]] if near else None


def nearest(word: str, known: list[str], shown: list[str] | None = None) -> str:
    """A hint for an unknown name: the nearest known one, and all of them (or what is shown in their place)."""
    near, listed = closest(word, known), f"known here: {', '.join(known if shown is None else shown)}"
    return f"did you mean '{near}'? {listed}" if near else listed


class _Unfailing:
    """A text stream that becomes the null device, in this whole process, once it cannot be written."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return self._try(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable, *arguments: str) -> Any:
        try:
            return call(*arguments)
        except OSError:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def survive_lost_output() -> None:
    """Closed or full standard streams, or a pipe that nobody reads on, from now on lose text and change nothing else.

    Nor does a character that is not in the stream's encoding: it is written as \\u....
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # it took the place of a closed stream, which a file opened later would get else
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is another, and never fails
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Unfailing(stream))


def killed_worker(error: Exception) -> str | None:
    """Where torch found a process dead, which interrupts the program at whatever it does: that, with what to do."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return (
            f"a process that reads samples was killed ({str(error).splitlines()[0]}); is there too little memory, or "
            "shared memory (/dev/shm)? data.workers=0 reads in the training process"
        )
    return None


def report_error(error: Exception, *, prepared: bool = False) -> int:
    """Prints one line, or one a finding.

    Returns 2 for bad input (ValueError, OSError before the first step), 1 for anything else.
    """
    bad_input = isinstance(error, ValueError | OSError) and not prepared
    expected = bad_input or isinstance(error, FloatingPointError | OSError)
    for line in str(error).splitlines() if isinstance(error, Findings) else [" ".join(str(error).split())]:
        line = killed_worker(error) or line
        text = line if expected else f"{type(error).__name__}: {line} (--debug shows where)"
        print(f"error: {text}", file=sys.stderr)
    return 2 if bad_input else 1


def run_command(command: Callable[[], int], *, debug: bool) -> int:
    """Its exit code, 130 for Ctrl-C, or that of its error, which is printed. debug: raises the error."""
    try:
        return command()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        return report_error(error)


@contextmanager
def writing(path: str | Path, consequence: str = "") -> Iterator[None]:
    """Where writing fails: raises OSError that names `path`, says whether the disk is full, and the `consequence`."""
    try:
        yield
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        full = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        why = full.get(cause.errno, cause.strerror or str(cause))
        raise OSError(f"{path} could not be written: {why}{consequence}") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError that `error` is, or that it came from: torch raises a RuntimeError in its place."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def warn(text: str) -> None:
    with tqdm.external_write_mode():  # on a terminal, without what a progress bar has drawn in this line
        print(f"warning: {visible(text)}", flush=True)


class _Lines:
    """Standard error as a log file: each state of a progress bar is a line, and nothing clears it."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(loader: DataLoader, title: str, unit: str = "step", scale: int = 1) -> tqdm:
    """scale: units in a batch of the loader."""
    # In a log file a line every 10 seconds is plenty.
    place = {"mininterval": 0.1} if sys.stderr.isatty() else {"mininterval": 10, "file": _Lines()}
    shown = {"unit": unit, "unit_scale": scale if scale > 1 else False, **place}
    return tqdm(loader, desc=title, leave=False, dynamic_ncols=True, delay=1, **shown)  # nothing of what takes no time


def name_beside(taken: Collection[str], name: str, others: Collection[str]) -> str:
    """For a column: `name`, or, where that is taken, "input <name>", which is none of the `others`."""
    if name in taken:
        while name in taken or name in others:
            name = f"input {name}"
    return name


def in_words(size: float) -> str:
    """Bytes as "31 MiB"."""
    power = 1 + (size >= 1000 * 2**10) + (size >= 1000 * 2**20)
    size /= 1024**power
    return f"{size:,.{1 if size < 10 else 0}f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def shortened(text: str, longest: int) -> str:
    """At most that many characters, the last of which then says that there are more."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def visible(text: str) -> str:
    """With the characters that cannot be seen, such as line breaks, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_table(rows: list[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> str:
    """Aligned columns; the first row is the heading, and the columns in `left` are text. A row is a line, whatever
    characters its cells have."""
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows[1:])])
