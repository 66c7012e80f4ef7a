import dataclasses

import pytest
import torch

from data import digits
from data.loaders import make_loader
from tests.conftest import replace

# What the splits need of the image network: ImageNet's mean and deviation.
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def data_config():
    from app.commands.root_config import load_config
    from tests.conftest import ROOT

    return replace(load_config(ROOT / "configs" / "fusion.yaml")[0].data, image_size=16)


def splits_of(config, *, seed=0, saved=None, image=IMAGENET):
    return digits.Digits(config, saved).splits(seed=seed, **image)


@pytest.fixture(scope="module")
def splits(data_config):
    return splits_of(data_config)


def rows(dataset, epoch, indices):
    return dataset[epoch, torch.tensor(indices)]


def test_sizes_and_stratification(splits):
    assert {name: len(split) for name, split in splits.items()} == {"train": 2100, "val": 450, "test": 450}
    for name, per_class in {"train": 210, "val": 45, "test": 45}.items():
        assert torch.bincount(splits[name].recordings.label).tolist() == [per_class] * 10
    assert sum(len(split.images) for split in splits.values()) == 1797


def test_no_recording_and_no_image_is_in_two_splits(splits):
    for get in (lambda s: s.recordings.frames.split(s.recordings.length.tolist()), lambda s: s.images):
        seen = [row.numpy().tobytes() for split in splits.values() for row in get(split)]
        own = [{row.numpy().tobytes() for row in get(split)} for split in splits.values()]
        assert len(set(seen)) == sum(len(contents) for contents in own)


def test_pairs_are_of_one_class(data_config):
    quiet = replace(data_config, image_noise=0.0, sequence_noise=0.0, image_size=8)
    splits = splits_of(quiet)
    for split in splits.values():
        batch = rows(split, 3, list(range(0, len(split), 7)))
        by_pixels = {}
        for label, candidates in enumerate(split.images_of_class):
            for image in split.images[candidates]:
                by_pixels.setdefault(image.numpy().tobytes(), set()).add(label)
        red = batch["image"][:, 0] * 0.229 + 0.485
        for image, label in zip((red * 16).round() / 16, batch["label"].tolist(), strict=True):
            assert label in by_pixels[image.numpy().tobytes()]


def test_normalisation_comes_from_the_training_split_alone(data_config, splits):
    quiet = replace(data_config, sequence_noise=0.0)
    source = digits.Digits(quiet)
    quiet_splits, normalisation = source.splits(seed=0, **IMAGENET), source.spec.normalisation
    batch = rows(quiet_splits["train"], 0, list(range(2100)))
    real = torch.arange(batch["sequence"].shape[1]) < batch["length"][:, None]
    frames = batch["sequence"][:, :, :13][real]
    torch.testing.assert_close(frames.mean(0), torch.zeros(13), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0), torch.ones(13), atol=1e-4, rtol=0)
    saved = dataclasses.replace(source.spec, normalisation={"mean": [0.0] * 13, "std": [2.0] * 13})
    assert digits.Digits(quiet, saved).spec == saved
    again = splits_of(quiet, saved=saved)
    assert len(normalisation["mean"]) == 13
    raw = again["val"].recordings.frames * 2
    mean, std = torch.tensor(normalisation["mean"]), torch.tensor(normalisation["std"])
    torch.testing.assert_close((raw - mean) / std, quiet_splits["val"].recordings.frames)


def test_a_sample_does_not_depend_on_its_batch(splits):
    for name in ("train", "val"):
        alone = rows(splits[name], 2, [5])
        together = rows(splits[name], 2, [9, 100, 5, 0])
        n = int(alone["length"])
        assert torch.equal(alone["image"][0], together["image"][2])
        torch.testing.assert_close(alone["sequence"][0, :n], together["sequence"][2, :n])


def test_training_pairs_are_drawn_anew_each_epoch_and_from_the_seed(data_config, splits):
    other_seed = splits_of(data_config, seed=1)
    first = rows(splits["train"], 0, [1, 2, 3])
    assert torch.equal(first["image"], rows(splits["train"], 0, [1, 2, 3])["image"])
    for other in (rows(splits["train"], 1, [1, 2, 3]), rows(other_seed["train"], 0, [1, 2, 3])):
        assert not torch.equal(first["image"], other["image"])
        assert not torch.equal(first["sequence"], other["sequence"])


def test_validation_and_test_never_change(data_config, splits):
    other_seed = splits_of(data_config, seed=1)
    for name in ("val", "test"):
        first = rows(splits[name], 0, [1, 2, 3])
        for other in (rows(splits[name], 5, [1, 2, 3]), rows(other_seed[name], 0, [1, 2, 3])):
            assert torch.equal(first["image"], other["image"])
            assert torch.equal(first["sequence"], other["sequence"])


def test_noise_has_its_stated_size(data_config, splits):
    quiet = splits_of(replace(data_config, image_noise=0.0, sequence_noise=0.0, image_size=8))
    noisy = splits_of(replace(data_config, image_size=8))
    indices = list(range(400))
    a, b = rows(quiet["train"], 0, indices), rows(noisy["train"], 0, indices)
    assert ((b["image"] - a["image"])[:, 0] * 0.229).std().item() == pytest.approx(0.25, rel=0.03)
    real = torch.arange(a["sequence"].shape[1]) < a["length"][:, None]
    assert (b["sequence"] - a["sequence"])[:, :, :13][real].std().item() == pytest.approx(1.5, rel=0.03)


def test_batches_have_the_documented_shapes(splits):
    batch = next(iter(make_loader(splits["train"], 32, device=torch.device("cpu"), shuffle=True)))
    longest = int(batch["length"].max())
    assert batch["image"].shape == (32, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert batch["sequence"].shape == (32, longest, 39) and batch["sequence"].dtype == torch.float32
    assert batch["length"].min() >= 1 and batch["length"].dtype == torch.int64
    assert batch["present"].shape == (32, 2) and batch["present"].dtype == torch.bool


def test_images_have_the_mean_and_deviation_that_were_asked_for(data_config):
    a = rows(splits_of(data_config)["val"], 0, [1, 2])["image"]
    other = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    b = rows(splits_of(data_config, image=other)["val"], 0, [1, 2])["image"]
    mean, std = (torch.tensor(IMAGENET[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(b * 0.5 + 0.5, a * std + mean)


def test_without_redraw_an_epoch_shows_the_training_samples_of_every_other_and_of_every_seed(data_config):
    fixed = replace(data_config, redraw=False)
    first = rows(splits_of(fixed)["train"], 0, [5, 1200])
    later = rows(splits_of(fixed, seed=3)["train"], 7, [1200, 5])
    for name in ("image", "sequence"):
        assert torch.equal(first[name], later[name].flip(0))
    redrawn = rows(splits_of(data_config)["train"], 1, [5, 1200])
    assert not torch.equal(first["image"], redrawn["image"])


def test_what_the_spec_says_of_the_rows(data_config):
    spec = digits.Digits(data_config).spec
    assert spec.class_counts == (210,) * 10 and spec.absent == (0, 0)
    other = dataclasses.replace(spec, rows={**spec.rows, "val": "449 rows, 00"})
    assert [*spec.other_rows(other)] == [f"the rows of val: 449 rows, 00 -> {spec.rows['val']}"]
    assert [*spec.other_rows(other, ("train", "test"))] == []


def test_one_draw_is_that_of_the_first_version_of_this_data_set(splits):
    """Scores of validation and test are compared with earlier ones: some values of three samples, as they were."""
    images, sequence, length = splits["val"].draw(7, torch.tensor([0, 1, 449]))
    assert length.tolist() == [19, 10, 23]
    found = [images[0, 0, 0], images[1, 7, 7], images[2, 3, 4], sequence[0, 0, 0], sequence[2, int(length[2]) - 1, 12]]
    earlier = [0.0144852130, -0.1521890163, -0.1117082834, -0.8049926162, 0.4640213251]
    torch.testing.assert_close(torch.stack(found), torch.tensor(earlier), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("redraw", [True, False])
def test_a_sample_is_the_same_in_any_order_process_and_place_of_its_arithmetic(data_config, redraw):
    config = replace(data_config, redraw=redraw)

    def samples(**settings):
        loader = make_loader(
            splits_of(config)["train"], 32, device=torch.device("cpu"), limit_batches=4, shuffle=True, **settings
        )
        loader.sampler.epoch = 3
        return {int(i): (batch["image"][row], batch["sequence"][row, : batch["length"][row]])
                for batch in loader for row, i in enumerate(batch["index"])}  # fmt: skip

    first = samples()
    for settings in ({"on_device": True}, {"workers": 1}, {"workers": 2}, {"workers": 2, "on_device": True}):
        other = samples(**settings)
        assert first.keys() == other.keys() and len(first) == 128
        assert all(torch.equal(a, b) for i in first for a, b in zip(first[i], other[i], strict=True)), settings
    train = splits_of(config)["train"]
    train[9, torch.tensor([0])]  # another epoch before
    for i in (*first,)[:5]:
        alone = train[3, torch.tensor([i])]
        assert torch.equal(alone["image"][0], first[i][0]) and torch.equal(alone["sequence"][0], first[i][1])
