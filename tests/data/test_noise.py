import pytest
import torch

from data.noise import Noisy
from data.split import PreparedSplit
from data.transforms import Preparation
from tests.data.test_digits import data_config, splits_of  # noqa: F401  (a fixture)

PREPARE = Preparation(
    image_size=4,
    image_mean=[0.5] * 3,
    image_std=[0.25] * 3,
    feature_mean=[10.0] * 3,
    feature_std=[2.0] * 3,
    deltas=False,
)


class Samples(PreparedSplit):
    """40 samples: grey images of 4 x 4, sequences of 1 to 3 windows of 1 to 50 frames, as they are stored."""

    labels, prepare = torch.zeros(40, dtype=torch.int64), PREPARE
    windows = torch.arange(40) % 3 + 1

    def __len__(self):
        return 40

    def gather(self, epoch, indices):
        windows = self.windows[indices]
        length = torch.cat([torch.arange(n) * 20 + i % 10 + 1 for i, n in zip(indices, windows, strict=True)])
        return {
            "image": torch.full((len(indices), 1, 4, 4), 51, dtype=torch.uint8),  # 0.2 of white
            "sequence": torch.full((len(length), int(length.max()), 3), 10.0),
            "length": length,
            "windows": windows,
            "present": torch.ones(len(indices), 2, dtype=torch.bool),
            "label": self.labels[indices],
            "index": indices,
        }


@pytest.fixture
def samples():
    return Samples()


def of(split, *indices):
    return split[0, torch.tensor(indices)]


def test_noise_has_its_deviation_in_the_units_of_the_source(samples):
    clean, noisy = of(samples, *range(40)), of(Noisy(samples, image=0.3, sequence=1.5), *range(40))
    real = torch.arange(clean["sequence"].shape[1]) < clean["length"][:, None]
    change = {
        "image": (noisy["image"] - clean["image"])[:, 0] * 0.25,
        "sequence": (noisy["sequence"] - clean["sequence"])[real],
    }
    assert change["image"].std().item() == pytest.approx(0.3, rel=0.1)
    assert change["sequence"].std().item() == pytest.approx(1.5, rel=0.05)
    assert not noisy["sequence"][~real].any()
    assert noisy.keys() == clean.keys()


@pytest.mark.parametrize("changed", ["image", "sequence"])
def test_only_what_is_asked_for_changes(samples, changed):
    clean, noisy = of(samples, 3, 4), of(Noisy(samples, **{changed: 1.0}), 3, 4)
    assert [name for name in clean if not torch.equal(clean[name], noisy[name])] == [changed]


def test_a_sample_has_its_own_noise_whatever_the_batch_and_twice_it_at_twice_the_deviation(samples):
    once, twice = Noisy(samples, image=0.5, sequence=0.5), Noisy(samples, image=1.0, sequence=1.0)
    clean, alone, beside, doubled = of(samples, 2), of(once, 2), of(once, 29, 2), of(twice, 2)
    assert torch.equal(alone["image"][0], beside["image"][1])
    frames = alone["sequence"].shape[1]
    assert torch.equal(alone["sequence"], beside["sequence"][-3:, :frames])
    for name in ("image", "sequence"):
        torch.testing.assert_close(doubled[name] - clean[name], 2 * (alone[name] - clean[name]))
    other = of(Noisy(samples, image=0.5, sequence=0.5, seed=1), 2)
    assert not torch.equal(alone["image"], other["image"]) and not torch.equal(alone["sequence"], other["sequence"])


def test_of_the_default_data_it_is_noise_on_the_image_of_8_x_8_and_on_the_features_before_their_deltas(data_config):  # noqa: F811
    split = splits_of(data_config)["test"]
    clean, noisy = of(split, *range(60)), of(Noisy(split, image=0.25, sequence=1.0), *range(60))
    drawn = Noisy(split, image=0.25, sequence=1.0).gather(0, torch.arange(60))
    assert drawn["noise_image"].shape == (60, 1, 8, 8) and drawn["noise_sequence"].shape[2] == 13
    change = (noisy["sequence"] - clean["sequence"])[:, :, :13]
    torch.testing.assert_close(change, drawn["noise_sequence"], atol=1e-5, rtol=1e-4)
