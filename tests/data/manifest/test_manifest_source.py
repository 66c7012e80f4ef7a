import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchaudio.functional import compute_deltas

from data.files.sequences import SequenceConfig
from data.loaders import make_loader
from data.manifest import cache as cache_module
from data.manifest.config import ManifestConfig
from data.manifest.source import Manifest
from data.source import make_source
from data.spec import DataSpec
from tests.data.manifest.tables import MANIFEST, good_rows, write_rows

MEAN, STD = [0.5, 0.25, 0.0], [0.5, 1.0, 2.0]


@pytest.fixture
def rows(tmp_path):
    return good_rows(tmp_path)


@pytest.fixture
def source(tmp_path, rows):
    def call(saved=None, modalities=("image", "sequence"), **settings):
        path = write_rows(tmp_path / "table.csv", rows)
        return Manifest(ManifestConfig(**MANIFEST, manifest=str(path), **settings), saved, modalities)

    return call


def split_of(source, name="train", seed=0):
    return source.splits(seed=seed, image_mean=MEAN, image_std=STD)[name]


def frames_of(tmp_path, *numbers):
    return [np.load(tmp_path / f"{i}.npy") for i in numbers]


def test_the_spec_is_measured_on_the_training_rows_alone(source, rows, tmp_path):
    rows[1]["sequence"], rows[2]["image"], rows[9]["sequence"] = "", "NA", ""
    spec = source().spec
    frames = np.concatenate(frames_of(tmp_path, 0, 2, 3, 4, 5))
    np.testing.assert_allclose(spec.normalisation["mean"], frames.mean(0), rtol=1e-12)
    np.testing.assert_allclose(spec.normalisation["std"], frames.std(0, ddof=1), rtol=1e-12)
    assert (spec.class_names, spec.class_counts, spec.num_features) == (("cat", "dog"), (3, 3), 3)
    assert spec.absent == (1, 1) and spec.image_range is None and spec.feature_names == ()
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_a_fingerprint_is_of_one_input_and_the_labels(source, rows, tmp_path):
    """Here of the split val, rows 6 and 7."""

    def of(found):
        return [found.fingerprint("val", what) for what in (None, "image", "sequence")]

    labels, image, sequence = of(source())
    assert len({labels, image, sequence}) == 3 and of(source()) == [labels, image, sequence]
    assert source(modalities=("image",)).fingerprint("val", "image") == image
    rows[0]["label"] = "dog"  # of another split
    assert of(source()) == [labels, image, sequence]
    (tmp_path / "6.png").rename(tmp_path / "renamed.png")
    rows[6]["image"] = "renamed.png"
    assert of(source()) == [labels, image, sequence]
    np.save(tmp_path / "7.npy", np.load(tmp_path / "7.npy") + 1)
    assert of(source())[:2] == [labels, image] and of(source())[2] != sequence
    rows[6], rows[7] = rows[7], rows[6]
    assert not {*of(source())} & {labels, image, sequence}


def test_a_feature_that_never_changes_is_not_divided_by_zero(source, tmp_path):
    for i in range(10):
        frames = np.load(tmp_path / f"{i}.npy")
        frames[:, 1] = 0.1
        np.save(tmp_path / f"{i}.npy", frames)
    found = source()
    assert found.spec.normalisation["std"][1] == 1
    assert split_of(found)[0, torch.arange(6)]["sequence"][:, :, 1].abs().max() < 1e-6


def test_a_batch_worked_out_by_hand(source, rows, tmp_path):
    pixels = np.array(Image.open(tmp_path / "4.png"))
    rows[2]["sequence"] = ""
    found = source(sequence={"deltas": True})
    batch = split_of(found)[0, torch.tensor([4, 2])]
    assert batch["index"].tolist() == [4, 2] and batch["label"].tolist() == [0, 0]
    assert batch["present"].tolist() == [[True, True], [True, False]]
    assert batch["length"].tolist() == [10, 1]
    for channel in range(3):
        expected = (torch.from_numpy(pixels) / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(batch["image"][0, channel], expected)
    (frames,) = frames_of(tmp_path, 4)
    normalised = (frames - found.spec.normalisation["mean"]) / found.spec.normalisation["std"]
    features = torch.from_numpy(normalised).float().T  # (F, T)
    deltas = compute_deltas(features)
    expected = torch.cat([features, deltas, compute_deltas(deltas)]).T
    torch.testing.assert_close(batch["sequence"][0], expected)
    assert not batch["sequence"][1].any() and batch["sequence"].shape == (2, 10, 9)
    assert found.spec.num_features == 9


def test_without_normalisation_features_are_as_they_are(source, tmp_path):
    batch = split_of(source(sequence={"normalise": False}), "val")[0, torch.tensor([1])]
    np.testing.assert_array_equal(batch["sequence"][0].numpy(), frames_of(tmp_path, 7)[0].astype(np.float32))


@pytest.mark.parametrize("value_range", [None, [1000, 3000]])
def test_images_of_16_bits_keep_their_depth(source, tmp_path, value_range):
    """Black and white are the lowest and highest value of the training split, or as configured; nothing is cut."""
    for i in range(10):
        values = 2000 + np.arange(64, dtype=np.uint16).reshape(8, 8) * (1 if i < 6 else 40)
        values[0, 0] = 1900 + i
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    found = source(image={} if value_range is None else {"value_range": value_range})
    black, white = found.spec.image_range
    assert [black, white] == (value_range or [1900, 2063])
    image = split_of(found, "test")[0, torch.tensor([0])]["image"][0, 2] * STD[2] + MEAN[2]
    expected = (2000 + np.arange(64).reshape(8, 8) * 40 - black) / (white - black)
    expected[0, 0] = (1908 - black) / (white - black)
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5)
    assert image.max() > 1


def test_a_range_that_the_config_says_counts_where_all_training_images_are_of_8_bits(source, tmp_path):
    Image.fromarray(np.full((8, 8), 2000, dtype=np.uint16)).save(tmp_path / "6.png")
    found = source(image={"value_range": [1000, 3000]})
    image = split_of(found, "val")[0, torch.tensor([0])]["image"][0]
    torch.testing.assert_close(image[0], torch.full((8, 8), (0.5 - MEAN[0]) / STD[0]))


def test_an_image_is_stretched_to_the_size_that_the_network_reads(source, tmp_path):
    half = np.zeros((40, 16, 3), dtype=np.uint8)
    half[:20, :, 0] = 255  # the upper half is red
    Image.fromarray(half).save(tmp_path / "0.png")
    image = split_of(source())[0, torch.tensor([0])]["image"][0]
    red = image[0] * STD[0] + MEAN[0]
    assert red.shape == (8, 8) and red[:3].min() > 0.99 and red[5:].max() < 0.01
    assert (image[1] * STD[1] + MEAN[1]).abs().max() < 0.01


class TestLongSequences:
    @pytest.fixture
    def long(self, source, tmp_path):
        """Row 2 (training), rows 8 and 9 (validation) count their frames."""
        for i, frames in ((0, 23), (6, 23), (7, 4)):
            np.save(tmp_path / f"{i}.npy", np.arange(frames, dtype=np.float32)[:, None] * (1, 1, i))

        def call(**settings):
            return source(max_length=10, sequence={"normalise": False}, **settings)

        return call

    @staticmethod
    def starts(batch):
        return [int(row[0, 0]) for row in batch["sequence"]]

    def test_truncate(self, long):
        found = long(too_long="truncate")
        for split in ("train", "val"):
            batch = split_of(found, split)[3, torch.tensor([0])]
            assert batch["sequence"][0, :, 0].tolist() == list(range(10)) and "windows" not in batch

    def test_in_training_a_window_is_drawn_for_each_epoch_seed_and_row(self, long):
        found = long(too_long="window")
        train = split_of(found)

        def start(epoch, rows, seed=0):
            return self.starts(split_of(found, seed=seed)[epoch, torch.tensor(rows)])[rows.index(0)]

        drawn = [start(epoch, [0]) for epoch in range(60)]
        assert set(drawn) == set(range(14))  # every window, the last of them too
        assert drawn == [start(epoch, [3, 0, 1]) for epoch in range(60)]  # whatever else is in the batch
        assert drawn != [start(epoch, [0], seed=1) for epoch in range(60)]
        window = train[0, torch.tensor([0])]["sequence"][0, :, 0]
        assert window.tolist() == list(range(int(window[0]), int(window[0]) + 10))

    def test_outside_training_the_first_or_all(self, long):
        first = split_of(long(too_long="window"), "val")[5, torch.tensor([0, 1])]
        assert self.starts(first) == [0, 0] and first["length"].tolist() == [10, 4] and "windows" not in first
        every = split_of(long(too_long="window", windows="mean"), "val")[5, torch.tensor([1, 0])]
        assert every["windows"].tolist() == [1, 3]
        assert self.starts(every) == [0, 0, 10, 13]  # the last one ends with the sequence
        assert every["length"].tolist() == [4, 10, 10, 10] and every["image"].shape[0] == 2


def test_a_checkpoints_preprocessing_counts(source, rows, tmp_path):
    first = source()
    saved = dataclasses.replace(first.spec, normalisation={"mean": [1.0] * 3, "std": [10.0] * 3})
    again = source(saved)
    assert again.spec == saved
    batch = split_of(again, "val")[0, torch.tensor([0])]
    (frames,) = frames_of(tmp_path, 6)
    np.testing.assert_allclose(batch["sequence"][0].numpy(), (frames - 1) / 10, rtol=1e-5, atol=1e-7)
    rows[0]["label"] = "bird"
    with pytest.raises(
        ValueError, match="row 2, column label, 'bird': is no class of the checkpoint, which has 'cat', 'dog'"
    ):
        source(saved)


def test_a_resume_with_other_deltas_is_refused(source):
    before = source(sequence={"deltas": True})
    assert make_source(before.config, before.spec).spec == before.spec
    other = before.config.model_copy(update={"sequence": SequenceConfig(deltas=False)})
    with pytest.raises(ValueError, match="manifest has num_features 3, the checkpoint's data have 9; give"):
        make_source(other, before.spec)


def test_rows_are_told_from_others_by_content_label_and_order(source, rows, tmp_path):
    before = source().spec
    (tmp_path / "8.png").rename(tmp_path / "renamed.png")
    rows[8]["image"] = "renamed.png"
    assert source().spec == before  # the names of files do not count
    rows[8], rows[9] = rows[9], rows[8]
    rows[0]["extra"] = "anything"
    swapped = source().spec
    assert [*swapped.other_rows(before)] == [f"the rows of test: {before.rows['test']} -> {swapped.rows['test']}"]
    Image.new("L", (8, 8), 3).save(tmp_path / "1.png")
    changed = source().spec
    assert [line[:19] for line in changed.other_rows(before)] == ["the rows of train: ", "the rows of test: 2"]


def test_one_branch(source, rows):
    for row in rows:
        del row["image"]
    found = source(modalities=("sequence",))
    batch = split_of(found)[0, torch.arange(3)]
    assert batch["present"].tolist() == [[False, True]] * 3 and batch["image"].shape == (3, 3, 8, 8)
    assert found.spec.absent == (6, 0)


@pytest.mark.parametrize("deltas", [False, True])
def test_a_model_that_reads_images_alone(source, deltas):
    found = source(modalities=("image",), sequence={"deltas": deltas})
    batch = split_of(found)[0, torch.arange(3)]
    assert batch["present"].tolist() == [[True, False]] * 3 and batch["image"].shape == (3, 3, 8, 8)
    assert batch["sequence"].shape == (3, 1, 0) and found.spec.num_features == 0


def test_a_file_that_goes_away_while_training_is_named_with_its_row(source, tmp_path):
    train = split_of(source(cache="none"))
    (tmp_path / "3.npy").unlink()
    with pytest.raises(OSError, match=r"table\.csv row 5, column sequence, '3\.npy': is not there.*right when checked"):
        train[0, torch.arange(6)]


@pytest.mark.parametrize(
    ("name", "now", "words"),
    [
        ("3.npy", np.zeros((6, 4)), "column sequence, '3.npy': has 4 features, the others have 3"),
        ("3.npy", np.zeros((30, 3)), "column sequence, '3.npy': has 30 frames, data.max_length is 20"),
        ("3.png", np.zeros((8, 8), np.uint16), "column image, '3.png': has values of type uint16, .* have uint8"),
    ],
)
def test_a_file_that_becomes_another_while_training_is_named_with_its_row(source, tmp_path, name, now, words):
    train = split_of(source(cache="none", max_length=20))
    np.save(tmp_path / name, now) if name.endswith("npy") else Image.fromarray(now).save(tmp_path / name)
    with pytest.raises(OSError, match=rf"table\.csv row 5, {words} \(it was right when checked\)$"):
        train[0, torch.arange(6)]


def test_a_loader_gives_every_row_once(source):
    loader = make_loader(split_of(source()), 4, device=torch.device("cpu"), shuffle=True)
    assert sorted(i for batch in loader for i in batch["index"].tolist()) == list(range(6))


def test_lengths_are_those_that_training_reads(source, rows):
    rows[1]["sequence"] = ""
    found = source(max_length=8, too_long="truncate")
    train = split_of(found)
    assert train.lengths.tolist() == train[0, torch.arange(6)]["length"].tolist() and 1 in train.lengths
    assert train.lengths.max() == 8 < split_of(source()).lengths.max()
    assert split_of(source(length_buckets=False)).lengths is None is split_of(found, "val").lengths


@pytest.mark.parametrize("augmentation", [{}, {"image": {"crop": {"scale": [0.25, 1.0]}}}])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_sample_is_the_same_beside_any_other(source, rows, tmp_path, on_device, augmentation):
    """Whatever sizes, depths and channels the images have, wherever a sequence ends, and whatever is missing."""
    draw = np.random.default_rng(0)
    for i, (shape, depth) in enumerate([((5, 9), 255), ((40, 30), 65535), ((8, 8, 3), 255), ((20, 8), 255)]):
        kind = np.uint8 if depth == 255 else np.uint16
        Image.fromarray(draw.integers(0, depth, shape).astype(kind)).save(tmp_path / f"{i}.png")
    rows[4]["image"], rows[5]["sequence"] = "", ""
    settings = {"image": {"value_range": [0.0, 65535.0]}, "sequence": {"deltas": True}}
    train = split_of(source(**settings, max_length=6, too_long="window", augmentation=augmentation))
    everything = make_loader(train, 6, device=torch.device("cpu"), on_device=on_device)
    (together,) = list(everything)
    assert (together["image"][4] == 0).all() and (together["sequence"][5] == 0).all()
    for i in range(6):
        for others in ([], [1], [3, 2], [5, 4, 0]):
            batch = train[0, torch.tensor([*others, i])]
            n = batch["length"][-1]
            assert n == together["length"][i]
            assert torch.equal(batch["image"][-1], together["image"][i])
            assert torch.equal(batch["sequence"][-1, :n], together["sequence"][i, :n])
            assert torch.equal(batch["present"][-1], together["present"][i])


def test_crops_are_of_images_as_large_as_the_largest_of_training_and_no_larger_than_they_need(source, tmp_path):
    def edges(**crop):
        train = split_of(source(augmentation={"image": {"crop": crop or None}}))
        return train.gather(0, torch.arange(6))["image"].shape[2:]

    assert edges(scale=[0.01, 1.0], ratio=[1.0, 1.0]) == (8, 8)  # images of 8 x 8 need not be 80 x 80 large
    Image.fromarray(np.zeros((20, 4), dtype=np.uint8)).save(tmp_path / "0.png")
    assert edges() == (8, 8)
    assert edges(scale=[0.01, 1.0], ratio=[1.0, 1.0]) == (20, 20)
    assert edges(scale=[0.25, 1.0], ratio=[1.0, 1.0]) == (16, 16)


def test_validation_reads_images_alike_whether_training_crops_them_or_not(source, tmp_path):
    for i, shape in enumerate([(5, 6), (7, 7), (8, 3), (8, 8)], start=6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, shape).astype(np.uint8)).save(tmp_path / f"{i}.png")
    plain, cropped = (
        split_of(source(augmentation=augmentation), "val")
        for augmentation in ({}, {"image": {"crop": {"scale": [0.25, 1.0]}}})
    )
    everything = torch.arange(len(plain))
    assert torch.equal(plain[0, everything]["image"], cropped[0, everything]["image"])
    for i in everything:
        assert torch.equal(cropped[0, i[None]]["image"][0], plain[0, everything]["image"][i])


def test_other_processes_make_batches_where_files_are_decoded_anew_or_the_cache_exceeds_memory(source, monkeypatch):
    def read_ahead(**settings):
        splits = source(**settings).splits(seed=0, image_mean=MEAN, image_std=STD)
        return {split.read_ahead for split in splits.values()}

    assert read_ahead() == {False}
    assert read_ahead(cache="none") == {True}
    size = source().cache.size
    for pages, expected in ((2 * size, False), (2 * size - 2, True)):
        memory = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1}
        monkeypatch.setattr(cache_module.os, "sysconf", memory.__getitem__)
        assert read_ahead() == {expected}
