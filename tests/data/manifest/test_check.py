import errno
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from app.messages import Findings
from data.manifest import cache
from data.manifest.check import check, unknown_labels
from data.manifest.config import ManifestConfig
from data.manifest.source import Manifest
from data.spec import MODALITIES
from tests.data.manifest.tables import MANIFEST, good_rows, write_rows


@pytest.fixture
def rows(tmp_path):
    return good_rows(tmp_path)


@pytest.fixture
def checked(tmp_path, rows):
    def call(modalities=MODALITIES, **settings):
        path = write_rows(tmp_path / "table.csv", rows)
        return check(ManifestConfig(**MANIFEST, manifest=str(path), **settings), modalities)

    return call


def lines_of(checked):
    start = f"{checked.table.path.parent}/"
    return [checked.table.line(finding).removeprefix(start) for finding in checked.findings]


def test_a_good_table_has_no_finding(checked):
    found = checked()
    assert found.findings == [] and found.notes == [] and found.class_names == ("cat", "dog")
    assert [len(found.rows_of(split)) for split in ("train", "val", "test")] == [6, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_told_of_each_file(checked, rows, tmp_path, monkeypatch, workers):
    """The same from this process and from others, in any number of pieces."""
    monkeypatch.setattr(cache, "_WORTH_PROCESSES", 1 if workers else 99)
    monkeypatch.setattr(cache, "_FILES_AT_ONCE", 3)
    rows[3]["sequence"] = "missing.npy"
    found = checked()
    pixels = np.array(Image.open(tmp_path / "4.png"))
    image = found.facts["image", "4.png"]
    assert (image.width, image.height, image.depth) == (8, 8, "uint8")
    assert (image.lowest, image.highest) == (pixels.min(), pixels.max())
    frames = np.load(tmp_path / "4.npy")
    sequence = found.facts["sequence", "4.npy"]
    assert (sequence.is_array, sequence.length) == (True, 10)
    np.testing.assert_allclose(sequence.mean, frames.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sequence.spread, frames.var(0) * 10, rtol=1e-12)
    (line,) = lines_of(found)
    assert line.startswith("table.csv row 5, column sequence, 'missing.npy': is not there")


def test_where_no_processes_can_be_started_this_one_reads_all(checked, monkeypatch):
    def no_space():
        raise OSError(errno.ENOSPC, "No space left on device")  # of a full /dev/shm

    monkeypatch.setattr(cache, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(multiprocessing, "Semaphore", no_space)
    monkeypatch.setattr(multiprocessing.context.BaseContext, "Lock", lambda self: no_space())
    assert len(checked().facts) == 20


def test_findings_of_rows_that_share_a_file_and_of_both_modalities(checked, rows, tmp_path):
    rows[0]["image"] = rows[2]["image"] = "broken.png"
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows[2]["sequence"] = "nothing.npy"
    assert [(f.row, f.column) for f in checked().findings] == [(2, "image"), (4, "image"), (4, "sequence")]


def test_one_number_of_features_for_all(checked, rows, tmp_path):
    np.save(tmp_path / "3.npy", np.ones((9, 4)))
    (line,) = lines_of(checked())
    assert line.startswith("table.csv row 5, column sequence, '3.npy': has 4 features, most files have 3; ")


def test_the_same_columns_in_the_same_order_for_all(checked, rows, tmp_path):
    for i in range(10):
        rows[i]["sequence"] = f"{i}.csv"
        names = "time,x,y" if i != 7 else "time,y,x"
        (tmp_path / f"{i}.csv").write_text(f"{names}\n0,1,{i}\n1,3,4\n2,5,6\n3,5,6\n")
    (line,) = lines_of(checked())
    assert line.startswith("table.csv row 9, column sequence, '7.csv': has the columns y, x, most files have x, y; ")


@pytest.mark.parametrize(("layout", "other"), [("TF", "FT"), ("FT", "TF")])
def test_a_layout_that_cannot_be_meant_is_asked_for_once(checked, rows, tmp_path, layout, other):
    for i in range(10):
        frames = np.random.default_rng(i).normal(size=(20 + i, 3))
        np.save(tmp_path / f"{i}.npy", frames.T if layout == "TF" else frames)
    (line,) = lines_of(checked(sequence={"layout": layout}))
    assert line.startswith("table.csv: 10 of 10 arrays have fewer frames than features (first 0.npy: 3 frames of 20 ")
    assert line.endswith(f"Set data.sequence.layout={other}")
    assert lines_of(checked(sequence={"layout": other})) == []


def test_too_long(checked):
    found = checked(max_length=14)
    assert [f.row for f in found.findings] == [11]
    assert found.findings[0].problem.startswith("has 15 frames, more than data.max_length=14; ")
    assert checked(max_length=14, too_long="truncate").findings == []
    assert checked(max_length=15).findings == []


def test_the_same_content_in_two_splits_under_two_names(checked, rows, tmp_path):
    (tmp_path / "9.png").write_bytes((tmp_path / "0.png").read_bytes())  # row 11, test, as row 2
    (tmp_path / "7.npy").write_bytes((tmp_path / "6.npy").read_bytes())  # both are in val
    (line,) = lines_of(checked())
    assert line.startswith(
        "table.csv row 11, column image, '9.png': has the same content as '0.png', in train too (row 2), and this row "
        "is in test; "
    )


def test_one_file_in_two_splits(checked, rows):
    rows[6]["sequence"] = rows[8]["sequence"]  # rows 8 and 10: val and test, neither of training
    (line,) = lines_of(checked())
    assert line.startswith(
        "table.csv row 10, column sequence, '8.npy': is in val too (row 8), and this row is in test;"
    )


def test_a_modality_that_is_not_read_is_not_looked_at(checked, rows):
    rows[0]["sequence"] = "missing.npy"
    assert checked(("image",)).findings == []


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_modality_that_no_training_row_has(checked, rows, modality):
    for row in rows[:6]:
        row[modality] = ""
    (line,) = lines_of(checked())
    assert line.startswith(f"table.csv, column {modality}: no training row has one, ") and "=null for a one-b" in line
    rows[0][modality] = rows[6][modality]
    rows[6][modality] = "NA"
    assert lines_of(checked()) == []


def test_images_of_several_depths(checked, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "5.png")
    (line,) = lines_of(checked())
    assert line.startswith("table.csv: images of several depths: uint8 (0.png), uint16 (5.png); ")
    assert checked(image={"value_range": [0, 65535]}).findings == []


def test_deep_images_of_one_value_have_no_range(checked, tmp_path):
    for i in range(10):
        Image.fromarray(np.full((8 + i, 8), 700, dtype=np.uint16)).save(tmp_path / f"{i}.png")
    (line,) = lines_of(checked())
    assert line == "table.csv: all images have the one value 700; set data.image.value_range=[black, white]"
    assert checked(image={"value_range": [0, 65535]}).findings == []


def test_a_class_that_only_bad_rows_have(checked, rows):
    for i in (1, 3, 5):  # all training rows of dogs
        rows[i]["image"] = "missing.png"
    found = checked()
    assert [f.row for f in found.findings] == [None, 3, 5, 7]
    assert "1 of 2 classes have no training rows: 'dog'" in lines_of(found)[0]
    assert lines_of(found)[0].endswith("(rows with a finding do not count)")


def test_of_many_classes_of_a_checkpoint_some_are_named(checked, rows):
    rows[8]["label"] = "bird"
    table = checked().table
    (found, *others) = unknown_labels(table, ("dog", *(f"breed {i:02}" for i in range(1200)), "cat"))
    assert others == [] and (found.row, found.column, found.value) == (10, "label", "bird")
    assert found.problem == (
        "is no class of the checkpoint, which has 'dog', 'breed 00', 'breed 01', 'breed 02', 'breed 03', "
        "'breed 04', 'breed 05', 'breed 06', 'breed 07', 'breed 08' and 1,192 more; correct the label, or train again"
    )


def test_notes(checked, rows):
    for row in rows:
        row["spilt"] = row.pop("split")
    rows[0]["label"] = "Cat"
    notes = checked(fractions={"train": 0.5, "val": 0.25, "test": 0.25}).notes
    assert "'Cat', 'cat' are 2 classes" in notes[0]
    assert notes[1] == (
        "no column says the split: it is drawn by a hash of the paths; did you mean the column 'spilt' to say the "
        "split? It is called split or subset"
    )


class TestOnError:
    """What the source makes of the findings."""

    @pytest.fixture
    def source(self, tmp_path, rows):
        def call(**settings):
            path = write_rows(tmp_path / "table.csv", rows)
            return Manifest(ManifestConfig(**MANIFEST, manifest=str(path), **settings))

        return call

    def test_raise_shows_twenty_and_counts_all(self, source, rows):
        rows += [{**rows[0], "image": f"missing-{i}.png"} for i in range(30)]
        with pytest.raises(Findings) as error:
            source()
        lines = str(error.value).splitlines()
        assert len(lines) == 21
        assert lines[20] == "and 10 more findings"

    def test_skip_leaves_out_the_rows_alone(self, source, rows):
        rows[0]["image"] = "missing.png"
        found = source(on_error="skip", skip_limit=0.1)
        assert [len(found.rows[split]) for split in ("train", "val", "test")] == [5, 2, 2]
        assert found.spec.class_counts == (2, 3)
        (skipped,) = found.skipped
        assert (skipped["row"], skipped["column"], skipped["value"]) == ("2", "image", "missing.png")
        assert skipped["problem"].startswith("is not there")

    def test_skip_has_a_limit(self, source, rows):
        rows[0]["image"] = "missing.png"
        with pytest.raises(Findings) as error:
            source(on_error="skip")
        assert str(error.value).splitlines()[1] == (
            "data.skip_limit: 1 of 10 rows (10.0%) cannot be used, allowed are 1.0%; mend them, or raise the limit"
        )

    def test_skip_never_covers_what_is_wrong_with_the_whole(self, source, rows):
        for i in (6, 7):
            rows[i]["image"] = "missing.png"
        with pytest.raises(Findings, match="no validation rows"):
            source(on_error="skip", skip_limit=1.0)

    def test_files_of_a_folder_are_left_out_and_counted_too(self, tmp_path, rows):
        for row in rows:
            place = tmp_path / "set" / row["split"] / row["label"]
            place.mkdir(parents=True, exist_ok=True)
            for cell in (row["image"], row["sequence"]):
                (tmp_path / cell).rename(place / cell)
        (tmp_path / "set" / "train" / "cat" / "0.png").unlink()
        (tmp_path / "set" / "train" / "dog" / "read me.txt").touch()
        config = ManifestConfig(**MANIFEST, manifest=str(tmp_path / "set"), on_error="skip", skip_limit=0.18)
        with pytest.raises(Findings, match=r"data.skip_limit: 2 of 11 rows \(18.2%\) cannot be used"):
            Manifest(config, modalities=["image"])
        found = Manifest(config.model_copy(update={"skip_limit": 0.19}), modalities=["image"])
        assert found.spec.class_counts == (2, 3) and found.spec.absent == (0, 5)
        assert [line["value"] for line in found.skipped] == ["train/dog/read me.txt", "train/cat/0.npy"]
