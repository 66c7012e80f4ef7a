"""What a whole manifest file can be: its encoding, separator, quotes, lines of JSON."""

import json

import pytest

from app.messages import Findings
from data.manifest.cells import read_cells


@pytest.fixture
def written(tmp_path):
    """Writes a file of this name, as text or bytes, and returns its path."""

    def write(content, name="my.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def lines_of(path):
    with pytest.raises(Findings) as error:
        read_cells(path)
    return [line.removeprefix(str(path)) for line in str(error.value).splitlines()]


@pytest.mark.parametrize(
    "content",
    [
        "image,label\na.png, cat \n\nb.png,dog\n",
        "\ufeffimage,label\r\na.png,cat\r\n\r\nb.png,dog\r\n",
        "image,label\ra.png,cat\r\rb.png,dog",
        'image ," label"\n"a.png","cat"\n  \nb.png,dog',
    ],
    ids=["plain", "byte order mark, Windows", "old Macintosh", "quoted, no last newline"],
)
def test_cells_and_row_numbers_are_those_of_a_spreadsheet(written, content):
    cells = read_cells(written(content))
    assert cells.columns == ["image", "label"]
    assert cells.rows == [["a.png", "cat"], ["b.png", "dog"]]
    assert cells.numbers == [2, 4]  # row 3 is blank


def test_a_quoted_cell_with_a_line_break_is_one_row(written):
    cells = read_cells(written('image,note\na.png,"two\nlines, ""quoted"""\nb.png,\n'))
    assert cells.numbers == [2, 3]
    assert cells.rows == [["a.png", 'two\nlines, "quoted"'], ["b.png", ""]]


def test_suffixes_in_capitals_and_tabs(written):
    assert read_cells(written("image\tnote\na.png\tx, y\n", "MY.TSV")).rows == [["a.png", "x, y"]]


def test_columns_without_a_name_get_their_position(written):
    assert read_cells(written(",image,\n0,a.png,\n")).columns == ["unnamed_1", "image", "unnamed_3"]


def test_rows_with_too_many_or_too_few_cells(written):
    cells = read_cells(written("image,label\na.png\nb.png,dog\nc.png,a,b\n"))
    assert cells.rows == [[None, None], ["b.png", "dog"], [None, None]]
    short, long = cells.malformed[2], cells.malformed[4]
    assert short.line("my.csv").startswith("my.csv row 2: has 1 cells, the header has 2; ")
    assert long.line("my.csv").startswith("my.csv row 4: has 3 cells, the header has 2; put a cell with commas")


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\r\n", '""\n'], ids=["nothing", "mark", "blank", "empty cell"])
def test_an_empty_file(written, content):
    (line,) = lines_of(written(content))
    assert line.startswith(": is empty; a table names its columns in the first row")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("my.csv", "image;label\n", ": its columns are separated by ';', not by commas; save it with commas"),
        ("my.csv", '"image";"label"\n', ": its columns are separated by ';', not by commas; save it with commas"),
        ("my.csv", '"image;label"\n', ": its columns are separated by ';', not by commas; save it with commas"),
        ("my.csv", "image;label;x, y\n", ": its columns are separated by ';', not by commas; save it with commas"),
        ("my.csv", "image|label\n", ": its columns are separated by '|', not by commas; save it with commas"),
        ("my.csv", "image\tlabel\n", ": its columns are separated by tabs, not by commas; rename it to .tsv"),
        ("my.tsv", "image,label\n", ": its columns are separated by commas, not by tabs; rename it to .csv"),
    ],
)
def test_another_separator(written, name, content, line):
    assert lines_of(written(content, name)) == [line]


def test_another_separator_inside_of_names_is_fine(written):
    assert read_cells(written('image,"a;b;c"\nx,y\n')).columns == ["image", "a;b;c"]
    assert read_cells(written("image,a;b\nx,y\n")).columns == ["image", "a;b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_utf_16_and_32(written, encoding):
    (line,) = lines_of(written("image,label\na.png,cat\n".encode(encoding)))
    assert line.startswith(": is not UTF-8 but UTF-16 or UTF-32; save it as UTF-8")


def test_latin_1_names_row_and_byte(written):
    content = 'image,label\n"a\nb.png",cat\nb.png,Zoë\n'
    (line,) = lines_of(written(content.encode("latin-1")))
    at = content.index("ë") + 1
    assert line.startswith(" row 3, '")
    assert f"byte {at} of the file (0xeb) is not UTF-8; save it as UTF-8" in line and "Zoë" in line
    (line,) = lines_of(written("image,label\na.png,cat\nécole.png,dog\n".encode("latin-1")))
    assert line.startswith(" row 3, '")
    (line,) = lines_of(written('{"label": "a"}\n{"label": "Zoë"}\n'.encode("latin-1"), "my.jsonl"))
    assert line.startswith(" row 2, '")


def test_a_nul_byte(written):
    (line,) = lines_of(written("image,label\na.png,cat\nb.png,d\0g\n"))
    assert line.startswith(" row 3: byte 30 of the file is NUL")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('image,label\na,b\n"c.png,cat\nd.png,dog\n', " row 3: a double quote opens in this row and is never closed"),
        ('image,label\n"c".png,cat\n', " row 2: after a closing double quote comes more text"),
        (f"image,label\na,b\nc,{'x' * 200_000}\n", " row 3: a cell has more than 131,072 characters; shorten it"),
        ('image,label\n"a,b\n' + "c.png,dog\n" * 20_000, " row 2: a cell has more than 131,072 characters; "),
    ],
    ids=["unterminated", "text after a quote", "huge cell", "unterminated in a long file"],
)
def test_quotes_and_huge_cells(written, content, line):
    (found,) = lines_of(written(content))
    assert found.startswith(line)


def test_more_columns_than_anybody_has(written):
    (line,) = lines_of(written(",".join(f"c{i}" for i in range(1001)) + "\n"))
    assert line.startswith(": has 1,001 columns, at most 1,000 are read")


def test_lines_of_json(written):
    rows = [
        '{"image": " a.png ", "label": 1.10, "ok": true, "sequence": null}',
        "",
        '{"label": "b", "\u00e4": "ü\\u00fc", "big": 123456789012345678901234567890, "gap": NaN}',
        "{}",
    ]
    cells = read_cells(written("\n".join(rows), "my.jsonl"))
    assert cells.columns == ["image", "label", "ok", "sequence", "ä", "big", "gap"]
    assert cells.numbers == [1, 3, 4]
    assert cells.rows[0] == ["a.png", "1.10", "true", None, None, None, None]
    assert cells.rows[1] == [None, "b", None, None, "üü", "123456789012345678901234567890", "NaN"]
    assert cells.rows[2] == [None] * 7


def test_lists_and_objects_in_json_are_marked(written):
    values = {"image": ["a.png", 1.5], "label": "cat", "extra": {"x": [1, {}]}}
    cells = read_cells(written(json.dumps(values) + "\n", "my.jsonl"))
    assert cells.nested == {(1, 0), (1, 2)}
    assert [json.loads(cells.rows[0][i]) for i in (0, 2)] == [values["image"], values["extra"]]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a.png,cat", "Expecting value at character 1"),
        ('{"image": "a.png"', "Expecting ',' delimiter at character 19"),
        ('"a.png"', 'write {"image": "a.png", ...} in each line'),
        ("3", 'write {"image": "a.png", ...} in each line'),
        ('{"image": "a.png", "image": "b.png"}', "it has one key twice"),
        ('{"image": "\\ud800.png"}', "it has half a character"),
        ('{"image": "\\u0000.png"}', "it has a NUL"),
        ('{"image": ' + "[" * 100_000 + "}", "it is nested too deep"),
    ],
)
def test_a_line_that_is_no_flat_object(written, line, why):
    (found,) = lines_of(written('{"image": "a.png"}\n' + line + "\n", "my.jsonl"))
    assert found.startswith(" row 2, '") and why in found and len(found) < 300


def test_all_bad_lines_of_json_are_told_up_to_twenty(written):
    lines = lines_of(written('{"image": "a.png"}\n' + "x\n" * 25, "my.jsonl"))
    assert len(lines) == 21
    assert [line.split(",")[0] for line in lines[:20]] == [f" row {i}" for i in range(2, 22)]
    assert lines[20] == ": and 5 more findings"


def test_one_json_array_is_told_once(written):
    (line,) = lines_of(written('[\n{"image": "a.png"},\n{"image": "b.png"}\n]\n', "my.jsonl"))
    assert line.startswith(": is one JSON array; write one object a line")
