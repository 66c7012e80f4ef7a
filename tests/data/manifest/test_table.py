"""Columns by role, and what is wrong with single rows."""

import os
import socket
from pathlib import Path

import pytest

from app.messages import Findings
from data.manifest.finding import Finding
from data.manifest.table import Row, read_table


@pytest.fixture
def written(tmp_path):
    """Writes my.csv, or a file of another name, and returns its path."""

    def write(content, name="my.csv"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8", newline="")
        return path

    return write


def lines_of(path, **how):
    """Of a table that cannot be read as a whole."""
    with pytest.raises(Findings) as error:
        read_table(path, **how)
    return [line.removeprefix(str(path)).removeprefix(": ") for line in str(error.value).splitlines()]


def findings_of(path, **how):
    findings = read_table(path, **how).findings
    return [finding.line("my.csv") for finding in sorted(findings, key=lambda finding: finding.row)]


# The table as a whole


def test_a_table_becomes_rows_by_role(written, tmp_path):
    path = written(
        "ID, Image_Path ,audio_filepath,Class,subset,speaker_id,age,\n"
        "r1, a.png ,a.wav, cat ,TRAIN,s1, 7 ,x\n"
        "r2,NA,b.wav,dog,Dev,,,\n"
        "r3,c.png,none,cat,eval,s2,9,\n"
    )
    table = read_table(path)
    assert (table.path, table.root, table.findings) == (path, tmp_path, [])
    assert table.columns == {
        "id": "ID",
        "image": "Image_Path",
        "sequence": "audio_filepath",
        "label": "Class",
        "split": "subset",
        "group": "speaker_id",
    }
    assert table.extra_columns == ("age", "unnamed_8")
    assert table.rows == [
        Row(2, "a.png", "a.wav", "cat", "TRAIN", "s1", "r1", ("7", "x")),
        Row(3, None, "b.wav", "dog", "Dev", None, "r2", ("", "")),
        Row(4, "c.png", None, "cat", "eval", "s2", "r3", ("9", "")),
    ]
    assert read_table(path, root=tmp_path / "..").root == tmp_path / ".."


@pytest.mark.parametrize("word", ["", "NA", "na", "NaN", "nan", "NAN", "null", "NULL", "None", "none", " NaN "])
def test_words_for_what_is_missing(written, word):
    (row, _) = read_table(written(f"image,sequence,label,speaker\n{word},a.wav,cat,{word}\nb.png,b.wav,dog,x\n")).rows
    assert row.image is None and row.sequence == "a.wav" and row.group is None


def test_those_words_are_text_elsewhere(written):
    table = read_table(written("image,sequence,label,group,id\na.png,a.wav,None,n/a,nan\nb.png,,n/a,s,x\n"))
    assert [(row.label, row.group, row.id) for row in table.rows] == [("None", "n/a", "nan"), ("n/a", "s", "x")]
    assert table.findings == []


def test_the_cells_of_a_row_keep_a_column_that_is_called_row(written):
    table = read_table(written("row,image,wav,label,input row\n7,a.png,a.wav,cat,x\n"))
    assert table.cells(table.rows[0]) == {
        "row": "2",
        "image": "a.png",
        "wav": "a.wav",
        "label": "cat",
        "input input row": "7",
        "input row": "x",
    }


def test_lines_of_json_by_role(written):
    path = written(
        '{"image": "a.png", "audio": null, "label": 3, "age": 7.5}\n{"audio": "b.wav", "label": true}\n', "m.JSONL"
    )
    assert read_table(path).rows == [
        Row(1, "a.png", None, "3", None, None, None, ("7.5",)),
        Row(2, None, "b.wav", "true", None, None, None, ("",)),
    ]


def test_data_columns_win_over_names(written):
    path = written("image,image_path,wav,kind,label\na.png,b.png,a.wav,cat,1\n")
    table = read_table(path, columns={"image": "IMAGE_PATH ", "label": "kind", "group": "label"})
    assert table.columns == {"image": "image_path", "sequence": "wav", "label": "kind", "group": "label"}
    assert table.extra_columns == ("image",)
    assert table.rows[0] == Row(2, "b.png", "a.wav", "cat", None, "1", None, ("a.png",))
    table = read_table(written("image,wav,class,label\na.png,a.wav,x,cat\n"), columns={"group": "Class"})
    assert table.columns == {"image": "image", "sequence": "wav", "label": "label", "group": "class"}


@pytest.mark.parametrize(
    ("header", "columns", "lines"),
    [
        (
            "image,image_path,wav,label",
            {},
            [
                "columns 'image', 'image_path' can all be the image; rename all but one, or say which it "
                "is: data.columns={image: image_path}"
            ],
        ),
        ("Image,image,wav,label", {"image": "IMAGE"}, ["columns 'Image', 'image' can all be the image; "]),
        ("image,wav,label,label", {}, [", column label: is the name of several columns"]),
        (
            "image,wav,label",
            {"imge": "image", "label": "lable"},
            [
                "data.columns.imge: unknown role; did you mean 'image'? known here: image, sequence, label, ",
                "no column called 'lable' (data.columns.label); the file has 'image', 'wav', 'label' (is it 'label'?)",
            ],
        ),
        (
            "imge,wav,lable",
            {},
            [
                "no column for the image (image, image_file_name, image_path); the file has 'imge', 'wav', 'lable' "
                "(is it 'imge'?); rename one, or data.columns={image: ITS_NAME}, or "
                "model.image_branch=null for a one-branch model",
                "no column for the label (label, class, target); the file has 'imge', 'wav', 'lable' (is it 'lable'?)",
            ],
        ),
        (
            "a.png,a.wav,cat",
            {},
            [f"no column for the {role} (" for role in ("image", "sequence", "label")],
        ),
    ],
)
def test_a_wrong_header_is_told_at_once(written, header, columns, lines):
    row = ",".join("x" for _ in header.split(","))
    found = lines_of(written(f"{header}\n{row}\n"), columns=columns)
    assert len(found) == len(lines)
    for line, beginning in zip(found, lines, strict=True):
        assert line.startswith(beginning)


def test_several_wrong_things_of_the_whole_table_at_once(written, tmp_path):
    (line,) = lines_of(written("image,image_path\n"), root=tmp_path / "none")
    assert line.startswith("data.root: ")
    found = lines_of(written("image,image_path\n"))
    starts = ["columns 'image', ", "no column for the sequence", "no column for the label", "has a header and no rows"]
    assert [line.startswith(start) for line, start in zip(found, starts, strict=True)] == [True] * 4


def test_a_missing_modality_column_names_the_branch(written):
    path = written("wav,label\na.wav,cat\n")
    (line,) = lines_of(path)
    assert line.endswith("or model.image_branch=null for a one-branch model")
    table = read_table(path, modalities=("sequence",))
    assert table.rows == [Row(2, None, "a.wav", "cat", None, None, None, ())]
    (line,) = lines_of(written("image,label\na.png,cat\n"))
    assert line.endswith("or model.temporal_branch=null for a one-branch model")
    (line,) = lines_of(written("image,label\na.png,cat\n"), needs_label=False)
    assert line.endswith("or add an empty one: no row then has one")
    assert len(read_table(written("image,sequence\na.png,\n"), needs_label=False).rows) == 1


def test_a_modality_that_is_not_read_travels_along(written):
    path = written("image,image_path,wav,label\na.png,b.png,a.wav,cat\n")
    table = read_table(path, modalities=("sequence",))
    assert table.extra_columns == ("image", "image_path") and table.rows[0].extra == ("a.png", "b.png")
    assert table.rows[0].image is None and "image" not in table.columns
    table = read_table(path, modalities=("sequence",), columns={"image": "image_path"})
    assert table.extra_columns == ("image", "image_path") and table.rows[0].image is None


def test_prediction_needs_no_label(written):
    path = written("image,wav\na.png,a.wav\na.png,a.wav\n")
    (line,) = lines_of(path)
    assert line.startswith("no column for the label (label, class, target); the file has 'image', 'wav'; rename one")
    table = read_table(path, needs_label=False, columns={"label": "kind"})
    assert table.findings == [] and len(table.rows) == 2
    assert findings_of(written("image,wav,label\na.png,a.wav,\nb.png,b.wav,cat\n"), needs_label=False) == []


def test_prediction_knows_no_split_group_and_id(written):
    """Their columns travel along, however many there are. No remedy names data.columns: it is that of the training."""
    path = written("image,wav,speaker,subject,split,subset,id\na.png,a.wav,s,t,u,v,1\nb.png,b.wav,,,,,1\n")
    table = read_table(path, needs_label=False)
    assert table.findings == [] and table.columns == {"image": "image", "sequence": "wav"}
    assert table.rows[0].extra == ("s", "t", "u", "v", "1")
    (line,) = lines_of(written("image,wav,label,class\na,b,c,d\n"), needs_label=False)
    assert line == "columns 'label', 'class' can all be the label; rename all but one"
    (line,) = lines_of(written("image,kind\na,b\n"), needs_label=False)
    assert line.endswith("rename one, or add an empty one: no row then has one")


@pytest.mark.parametrize("name", ["my.xlsx", "my.json", "my.csv.gz", "manifest"])
def test_another_suffix(written, name):
    (line,) = lines_of(written("x", name))
    assert line.startswith("is neither a .csv, .tsv, .jsonl file nor a folder; save a spreadsheet as 'CSV UTF-8', ")


def test_what_is_not_there_or_no_file_is_never_opened(tmp_path, monkeypatch):
    (tmp_path / "link.csv").symlink_to("nowhere.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "null.csv").symlink_to("/dev/zero")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was opened"))
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        listening.bind("socket.csv")
        for name in ("nothing.csv", "link.csv", "pipe.csv", "null.csv", "socket.csv", "a\0b.csv"):
            with pytest.raises(FileNotFoundError, match=r"\.csv: is not there, or neither a file nor a folder$"):
                read_table(tmp_path / name)


# Single rows


def test_findings_of_rows(written):
    content = [
        "image,sequence,label,id",
        "a.png,a.wav,cat,1",
        "b.png,b.wav,,2",  # row 3
        ",NA,dog,3",  # row 4
        "c.png,c.wav",  # row 5
        ",,,",  # row 6, which is none
        "a.png,a.wav,cat,4",  # row 7
        "a.png,a.wav,dog,5",  # row 8
        "d.png,d.wav,dog,1",  # row 9
        "a.png,,cat,6",  # another sample: its sequence is missing
        "b.png,b.wav,dog,7",  # row 3 has no label, so that it says nothing of these files
        "e.png,e.wav,dog,8,9",  # row 12
        "a.png,a.wav,cat,1",  # row 13
    ]
    found = findings_of(written("\n".join(content)))
    assert [line.split(";")[0] for line in found] == [
        "my.csv row 3, column label: is empty",
        "my.csv row 4, column image and sequence: is empty",
        "my.csv row 5: has 2 cells, the header has 4",
        "my.csv row 7, column image, 'a.png': row 2 has the same files and label",
        "my.csv row 8, column label, 'dog': two labels for the same files: row 2 has 'cat'",
        "my.csv row 9, column id, '1': row 2 has this id too",
        "my.csv row 12: has 5 cells, the header has 4",
        "my.csv row 13, column image, 'a.png': row 2 has the same files and label",
        "my.csv row 13, column id, '1': row 2 has this id too",
    ]
    assert all("; " in line for line in found)
    numbers = [row.number for row in read_table(written("\n".join(content))).rows]
    assert numbers == [2, 3, 4, 5, *range(7, 14)]


def test_a_comma_at_the_end_of_every_row_is_told_as_such(written):
    found = findings_of(written("image,sequence,label\na.png,a.wav,cat,\nb.png,b.wav,dog,\n"))
    assert [line.split(";")[0] for line in found] == [
        f"my.csv row {row}: has 4 cells, the header has 3" for row in (2, 3)
    ]


def test_a_row_of_nothing_but_other_columns_is_not_called_empty(written):
    found = findings_of(written("image,sequence,label,age\n,,,7\na.png,a.wav,cat,8\n"))
    assert [line.split(":")[0] for line in found] == [
        "my.csv row 2, column image and sequence",
        "my.csv row 2, column label",
    ]


def test_the_only_modality_of_a_model_must_be_there(written):
    path = written("image,sequence,label\n,a.wav,cat\nb.png,,dog\n")
    assert findings_of(path) == []
    (line,) = findings_of(path, modalities=("image",))
    assert line.startswith("my.csv row 2, column image: is empty; ")


def test_duplicates_are_told_by_the_modality_that_is_there(written):
    (line,) = findings_of(written("image,sequence,label\n,a.wav,cat\n,a.wav,cat\nb.png,,dog\n"))
    assert line.startswith("my.csv row 3, column sequence, 'a.wav': row 2 has the same files and label; ")


def test_a_list_is_no_cell_of_a_role(written):
    rows = [
        '{"image": "a.png", "wav": "a.wav", "label": ["cat", "dog"], "tags": ["x"]}',
        '{"wav": "b", "label": "cat"}',
    ]
    table = read_table(written("\n".join(rows), "my.jsonl"))
    (finding,) = table.findings
    assert finding.line("my.jsonl").startswith('my.jsonl row 1, column label, \'["cat", "dog"]\': is a list or an ')
    assert table.rows[0].extra == ('["x"]',)


# One line for the user


def test_a_line_is_short_and_shows_what_cannot_be_seen():
    finding = Finding(12, "image", "a.png", "is not there; correct the path")
    assert finding.line("my.csv") == "my.csv row 12, column image, 'a.png': is not there; correct the path"
    assert Finding(None, None, None, "is empty").line("my.csv") == "my.csv: is empty"
    assert Finding(3, None, "a\nb\x1b[31m\u202e\ud800", "x").line("m") == "m row 3, 'a\\nb\\x1b[31m\\u202e\\ud800': x"
    line = Finding(3, "c" * 500, "start" + "x" * 500 + "end.png", "y").line("m")
    assert len(line) < 200 and "'startx" in line and "xend.png'" in line
