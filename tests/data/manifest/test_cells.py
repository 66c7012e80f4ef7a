"""What a whole manifest file can be: its encoding, separator, quotes, lines of JSON."""

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
        "image,label\na.png,cat\n\nb.png,dog\n",
        "\ufeffimage,label\r\na.png,cat\r\n\r\nb.png,dog\r\n",
        "image,label\ra.png,cat\r\rb.png,dog",
        'image ," label"\n"a.png","cat"\n , \nb.png,dog',
    ],
    ids=["plain", "byte order mark, Windows", "old Macintosh", "quoted, no last newline"],
)
def test_row_numbers_are_those_of_a_spreadsheet(written, content):
    cells = read_cells(written(content))
    assert cells.columns == ["image", "label"] and cells.findings == []
    assert cells.rows == {2: {"image": "a.png", "label": "cat"}, 4: {"image": "b.png", "label": "dog"}}  # 3 is blank


def test_a_quoted_cell_with_a_line_break_is_one_row(written):
    cells = read_cells(written('image,note\na.png,"two\nlines, ""quoted"""\nb.png,\n'))
    assert [row["note"] for row in cells.rows.values()] == ['two\nlines, "quoted"', ""] and [*cells.rows] == [2, 3]


def test_suffixes_in_capitals_and_tabs(written):
    assert read_cells(written("image\tnote\na.png\tx, y\n", "MY.TSV")).rows == {2: {"image": "a.png", "note": "x, y"}}


def test_columns_without_a_name_get_their_position(written):
    assert read_cells(written(",image,\n0,a.png,\n")).columns == ["unnamed_1", "image", "unnamed_3"]


def test_columns_of_one_name(written):
    lines = lines_of(written("image,age,age,image\na,1,2,b\n"))
    assert lines == [
        f", column {name}: is the name of several columns; rename all but one" for name in ("age", "image")
    ]


def test_rows_with_too_many_or_too_few_cells(written):
    cells = read_cells(written("image,label\na.png\nb.png,dog\nc.png,a,b\n"))
    assert cells.rows == {2: {}, 3: {"image": "b.png", "label": "dog"}, 4: {}}
    short, long = cells.findings
    assert short.line("my.csv").startswith("my.csv row 2: has 1 cells, the header has 2; ")
    assert long.line("my.csv").startswith("my.csv row 4: has 3 cells, the header has 2; put a text with separators in")


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\r\n"], ids=["nothing", "mark", "blank"])
@pytest.mark.parametrize("name", ["my.csv", "my.tsv", "my.jsonl"])
def test_an_empty_file(written, content, name):
    (line,) = lines_of(written(content, name))
    assert line.startswith(": is empty; a table names its columns in the first row")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("my.csv", "image;label\n", ": its columns are separated by ';', not by commas; save it with commas"),
        ("my.csv", '"image;label"\n', ": its columns are separated by ';', not by commas; save it with commas"),
        ("my.csv", "image\tlabel\n", ": its columns are separated by '\\t', not by commas; save it with commas"),
        ("my.tsv", "image,label\n", ": its columns are separated by ',', not by tabs; save it with tabs"),
    ],
)
def test_another_separator(written, name, content, line):
    assert lines_of(written(content, name)) == [line]


def test_another_separator_inside_of_names_is_fine(written):
    assert read_cells(written('image,"a;b;c"\nx,y\n')).columns == ["image", "a;b;c"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1"])
def test_what_is_not_utf_8(written, encoding):
    (line,) = lines_of(written("image,label\na.png,cat\nb.png,Zo\u00eb\n".encode(encoding)))
    assert line.endswith("; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')")
    if encoding == "latin-1":
        assert line.startswith(": is not UTF-8 (byte 0xeb in line 3); ")


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ('image,label\na,b\n"c.png,cat\nd.png,dog\n', " row 3: cannot be read (unexpected end of data); look at the"),
        ('image,label\n"c".png,cat\n', " row 2: cannot be read (',' expected after '\"'); look at the double quotes"),
        (f"image,label\na,b\nc,{'x' * 200_000}\n", " row 3: cannot be read (field larger than field limit (131072))"),
    ],
    ids=["unterminated", "text after a quote", "huge cell"],
)
def test_quotes_and_huge_cells(written, content, start):
    (found,) = lines_of(written(content))
    assert found.startswith(start)


def test_lines_of_json(written):
    cells = read_cells(
        written('{"image": "a.png"}\r\n\n{"label": ["b"], "ä": "ü\\u00fc\u2028", "gap": null}\n{}', "my.jsonl")
    )
    assert cells.columns == ["image", "label", "ä", "gap"]
    assert cells.rows == {1: {"image": "a.png"}, 3: {"label": ["b"], "ä": "üü\u2028", "gap": None}, 4: {}}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a.png,cat", "Expecting value: line 1 column 1"),
        ('{"image": "a.png"', "Expecting ',' delimiter"),
        ('"a.png"', "it is another value"),
        ("3", "it is another value"),
        ('{"label": "a\\ud800"}', "'utf-8' codec can't encode character"),
        ('{"label": "a\\u0000"}', "it has a NUL"),
        ('{"label": "a", " label": "b"}', "it has one key twice"),
        ('{"label": ' + "[" * 100_000 + "]" * 100_000 + "}", "maximum recursion depth"),
    ],
)
def test_a_line_that_is_no_object(written, line, why):
    (found,) = lines_of(written('{"image": "a.png"}\n' + line + "\n", "my.jsonl"))
    assert found.startswith(" row 2, '") and f": is not a JSON object ({why}" in found and len(found) < 300


def test_numbers_of_json_stay_as_they_are_written(written):
    cells = read_cells(written('{"label": 1.10, "id": 10, "x": 1e1, "y": NaN}\n', "my.jsonl"))
    assert cells.rows == {1: {"label": "1.10", "id": "10", "x": "1e1", "y": "NaN"}}


def test_all_bad_lines_of_json_are_told_up_to_twenty(written):
    lines = lines_of(written('{"image": "a.png"}\n' + "x\n" * 25, "my.jsonl"))
    assert [line.split(",")[0] for line in lines] == [*(f" row {i}" for i in range(2, 22)), "and 5 more findings"]
