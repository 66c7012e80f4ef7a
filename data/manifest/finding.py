"""What is wrong with a table, as lines for the user."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from app.messages import Findings, visible

MOST_CHARACTERS = 80  # of a value, in a line
MOST_LINES = 20


class Finding(NamedTuple):
    """One thing that is wrong.

    Fields:
        row: as a spreadsheet counts, the header being row 1; of a .jsonl the line. None: the whole table, or a folder.
        column: as the file calls it; None: the row or the table as a whole.
        value: what was found there; for a folder, the path below it.
        problem: what is wrong, what is allowed, what to do.
    """

    row: int | None
    column: str | None
    value: str | None
    problem: str

    @property
    def is_of_the_whole(self) -> bool:
        """Not of one row, nor of one file of a folder: leaving something out would not mend it."""
        return self.row is None and (self.column is not None or self.value is None)

    def line(self, manifest: str | Path) -> str:
        """Such as "my.csv row 12, column image, 'a.png': is not there; correct the path"."""
        place = visible(str(manifest)) + ("" if self.row is None else f" row {self.row}")
        column = None if self.column is None else f"column {shown(self.column)}"
        value = None if self.value is None else f"'{shown(self.value)}'"
        return ", ".join(part for part in (place, column, value) if part is not None) + f": {self.problem}"


def of_table(problem: str, column: str | None = None) -> Finding:
    return Finding(None, column, None, problem)


def of_file(path: str | Path, problem: str) -> Finding:
    """Of a file in a folder without a table."""
    return Finding(None, None, str(path), problem)


def shown(text: str) -> str:
    """`text` in one line: its middle left out where it is long, characters that cannot be seen escaped."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS // 2]}...{text[-MOST_CHARACTERS // 2 :]}"
    return visible(text)


def listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:most]) + more


def refuse(manifest: str | Path, findings: Sequence[Finding]) -> None:
    """Raises Findings if there are any."""
    if findings:
        raise Findings(first_lines([finding.line(manifest) for finding in findings]))


def first_lines(lines: list[str]) -> list[str]:
    """The first 20, and how many more there are."""
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"and {more:,} more findings"] if more > 0 else lines
