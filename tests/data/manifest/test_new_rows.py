import json

import numpy as np
import pytest
import torch
from PIL import Image

from app.messages import Findings
from data.manifest.config import ManifestConfig
from data.manifest.source import Manifest, NewRows
from data.source import make_new_rows
from tests.data.manifest.tables import MANIFEST, good_rows, write_rows

IMAGE = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
BOTH = ("image", "sequence")


@pytest.fixture
def trained(tmp_path):
    """The config and spec of a checkpoint."""
    (tmp_path / "old").mkdir()
    path = write_rows(tmp_path / "old" / "table.csv", good_rows(tmp_path / "old"))
    config = ManifestConfig(**MANIFEST, manifest=str(path), root=str(tmp_path / "old"), columns={"label": "label"})
    return config, Manifest(config).spec


@pytest.fixture
def rows(tmp_path):
    """Of a table beside the other's folder, with another split column and no labels."""
    rows = good_rows(tmp_path, frames=30)
    return [
        {"id": f"n{i}", "age": str(20 + i), "image": r["image"], "sequence": r["sequence"]} for i, r in enumerate(rows)
    ]


def read(trained, path, modalities=BOTH):
    config, spec = trained
    return NewRows(path, config, spec, modalities)


def test_rows_without_labels_are_prepared_as_in_training(trained, rows, tmp_path):
    new = read(trained, write_rows(tmp_path / "new.csv", rows))
    split = new.splits(seed=0, **IMAGE)["new"]
    batch = split[0, torch.tensor([3, 0])]
    assert batch["label"].tolist() == [-1, -1] and len(split) == 10
    frames, spec = np.load(tmp_path / "3.npy"), trained[1]
    expected = (frames - spec.normalisation["mean"]) / spec.normalisation["std"]  # not of these rows
    np.testing.assert_allclose(batch["sequence"][0, : len(frames)].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert new.spec == spec and new.unreadable == new.unlabelled == {}


def test_a_fingerprint_is_of_the_rows_that_can_be_read(trained, rows, tmp_path):
    path = write_rows(tmp_path / "new.csv", rows)
    both, images = read(trained, path), read(trained, path, ("image",))
    assert both.fingerprint("new", "image") == images.fingerprint("new", "image")
    assert both.fingerprint("new", "image") != both.fingerprint("new", "sequence")
    np.save(tmp_path / "8.npy", np.ones((5, 4)))  # which the model of images does not read
    both, images = read(trained, path), read(trained, path, ("image",))
    assert both.fingerprint("new", "image") != images.fingerprint("new", "image")
    assert both.fingerprint("new", None).startswith("9 rows, ")


def test_each_row_comes_back_in_its_place_with_its_error(trained, rows, tmp_path):
    rows[0]["image"] = "../old/0.png"
    rows[4]["sequence"] = ""
    rows[6] |= {"image": "NA", "sequence": "NA"}
    np.save(tmp_path / "8.npy", np.ones((5, 4)))
    for row, label in zip(rows, ["cat", "dog", "cow", "", *["dog"] * 6], strict=True):
        row["label"] = label
    new = read(trained, write_rows(tmp_path / "new.csv", rows))
    assert sorted(new.unreadable) == [2, 8, 10]
    assert new.unlabelled[4].startswith("label, cow is no class of the checkpoint")
    split = new.splits(seed=0, **IMAGE)["new"]
    batch = split[0, torch.arange(len(split))]
    assert batch["label"].tolist() == [1, -1, -1, 1, 1, 1, 1]
    assert batch["present"].tolist() == [[True, True]] * 3 + [[True, False]] + [[True, True]] * 3
    full = new.complete([{"prediction": i} for i in range(len(split))], ["prediction"])
    assert [row["prediction"] for row in full] == ["", 0, 1, 2, 3, 4, "", 5, "", 6]
    assert full[0]["error"].startswith("image, ../old/0.png is not there: ")
    assert full[8]["error"].startswith("sequence, 8.npy has 4 features, the checkpoint's data have 3; ")
    assert full[1]["error"] == "" and "cow" in full[2]["error"]
    assert new.cells()[6] == {"row": "8", "id": "n6", "age": "26", "image": "", "sequence": "", "label": "dog"}


def test_rows_may_come_twice_and_in_any_split(trained, rows, tmp_path):
    rows = [row | {"split": split} for row in rows for split in ("train", "nonsense")]
    new = read(trained, write_rows(tmp_path / "new.csv", rows))
    assert len(new.rows) == 20 and new.unreadable == {}


def test_json_lines(trained, rows, tmp_path):
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row | {"age": None}) + "\n" for row in rows))
    assert len(read(trained, tmp_path / "new.jsonl").rows) == 10


def test_a_table_without_a_column_that_the_model_reads(trained, rows, tmp_path):
    for row in rows:
        del row["sequence"]
    path = write_rows(tmp_path / "new.csv", rows)
    with pytest.raises(Findings, match="sequence"):
        read(trained, path)
    assert len(read(trained, path, ("image",)).rows) == 10


def test_sequences_with_fewer_frames_than_features(trained, rows, tmp_path):
    """They may be meant so, and are read as in training: a single one tells nothing of the layout."""
    for i in range(1, 10):
        np.save(tmp_path / f"{i}.npy", np.ones((3, 40)))
    np.save(tmp_path / "0.npy", np.ones((2, 3)))
    new = read(trained, write_rows(tmp_path / "new.csv", rows))
    assert [row.number for row in new.rows] == [2] and "has 40 features, " in new.unreadable[3]
    assert new.unreadable[3].endswith("the checkpoint's data have 3; swap its rows and columns")


DEPTHS = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}


@pytest.mark.parametrize("depth", DEPTHS)
def test_images_of_another_depth_than_in_training_are_not_predicted(rows, tmp_path, depth):
    """Where the range of values was measured, there is none for another depth."""
    (tmp_path / "old").mkdir()
    old = good_rows(tmp_path / "old")
    for i, row in enumerate(old):
        row["image"] = f"{i}.tif"
        Image.fromarray((np.eye(8) * (200 - i)).astype(DEPTHS[depth])).save(tmp_path / "old" / row["image"])
    for row, (name, kind) in zip(rows, DEPTHS.items(), strict=False):
        row["image"] = f"{name}.tif"
        Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / row["image"])
    path = write_rows(tmp_path / "new.csv", rows[:3])

    def unreadable(**image):
        config = ManifestConfig(**MANIFEST, manifest=str(write_rows(tmp_path / "old" / "t.csv", old)), image=image)
        return read((config, Manifest(config).spec), path).unreadable

    lines = unreadable()
    assert [name for name, row in zip(DEPTHS, (2, 3, 4), strict=True) if row not in lines] == [depth]
    assert all(f"the images that the checkpoint was trained on {depth}; convert it, or" in v for v in lines.values())
    assert unreadable(value_range=[0, 200]) == {}


def test_files_of_a_folder_that_are_no_row_are_told(trained, rows, tmp_path):
    place = tmp_path / "set" / "test" / "cat"
    place.mkdir(parents=True)
    for name in ("0.png", "1.npy", "1.png"):
        (tmp_path / name).rename(place / name)
    (place / "1.gif").touch()
    new = read(trained, tmp_path / "set", ("image",))
    assert [row.image for row in new.rows] == ["test/cat/0.png", "test/cat/1.png"] and new.unreadable == {}
    (line,) = new.not_rows
    assert line.startswith(f"{tmp_path / 'set'}, 'test/cat/1.gif': is neither an image nor a sequence (")
    (place / "1.png").unlink()
    new = read(trained, tmp_path / "set", ("image",))
    assert len(new.rows) == 1 and ", 'test/cat/1.npy': has no image beside it" in new.not_rows[1]


def test_a_model_of_another_source_reads_no_files(trained, config, tmp_path):
    with pytest.raises(ValueError, match="trained with data.source=digits, and says nothing of how files are read"):
        make_new_rows(tmp_path / "new.csv", config.data, trained[1], BOTH)


def test_paths_may_start_from_another_folder(trained, rows, tmp_path):
    (tmp_path / "tables").mkdir()
    path = write_rows(tmp_path / "tables" / "new.csv", rows)
    assert len(read(trained, path).unreadable) == 10
    config, spec = trained
    assert NewRows(path, config, spec, BOTH, root=tmp_path).unreadable == {}
