"""Splits whose training samples are varied, as the program builds them."""

import pytest
import torch

from app.commands.build import build_loaders
from data.augmentation.augmented import Augmented
from data.augmentation.config import AugmentationConfig
from data.digits import Digits
from data.loaders import make_loader, to_device
from tests.conftest import replace

EVERYTHING = {
    "image": {
        "crop": {"scale": [0.5, 0.9]},
        "flip": {"horizontal": 0.5, "vertical": 0.5},
        "affine": {"degrees": 20.0, "translate": 0.1, "scale": [0.8, 1.2]},
        "colour": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
        "erase": {"p": 0.5},
    },
    "sequence": {
        "speed": {"factor": [0.7, 1.4]},
        "shift": {"max_share": 0.2},
        "gain": {"db": 6.0},
        "noise": {"std": 0.1},
        "time_mask": {"max_share": 0.3},
        "feature_mask": {"max_share": 0.3},
    },
}
CPU = torch.device("cpu")


@pytest.fixture
def digits(config):
    """The training split of the default data, as small images."""
    plain = replace(config.data, image_size=16)
    return Digits(plain).splits(seed=0, image_mean=[0.5] * 3, image_std=[0.25] * 3)["train"]


def augmented(split, seed=3, **effects):
    return Augmented(split, AugmentationConfig.model_validate(effects), image_size=16, seed=seed)


def sample(batch, row):
    """All that a batch says of one sample, without the padding."""
    found = {name: tensor[row] for name, tensor in batch.items()}
    return found | {"sequence": found["sequence"][: found["length"]]}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("mixup", [None, {"alpha": 0.4}])
def test_a_sample_is_the_same_in_any_batch_order_process_and_place_of_its_arithmetic(digits, mixup):
    def samples(**settings):
        loader = make_loader(
            augmented(digits, **EVERYTHING, mixup=mixup), 8, device=CPU, shuffle=True, limit_batches=3, **settings
        )
        loader.sampler.epoch = 2
        return {int(i): sample(batch, row) for batch in loader for row, i in enumerate(batch["index"])}

    first = samples()
    assert len(first) == 24 and ("share" in next(iter(first.values()))) == bool(mixup)
    for settings in ({"on_device": True}, {"workers": 1}, {"workers": 2, "on_device": True}):
        other = samples(**settings)
        for i in first:
            assert_equal(first[i], other[i])
    later = augmented(digits, **EVERYTHING, mixup=mixup)
    later[1, torch.arange(5)]  # another epoch before
    for i in first:
        assert_equal(sample(later[2, torch.tensor([i])], 0), first[i])


def test_every_epoch_and_seed_varies_a_sample_anew(digits):
    indices = torch.arange(4)
    digits.redraw = False
    plain, first = digits[0, indices], augmented(digits, **EVERYTHING)[0, indices]
    others = [plain, augmented(digits, **EVERYTHING)[1, indices], augmented(digits, seed=4, **EVERYTHING)[0, indices]]
    for other in others:
        for row in range(4):
            assert not torch.equal(first["image"][row], other["image"][row])
            assert not torch.equal(sample(first, row)["sequence"], sample(other, row)["sequence"])


def test_noise_is_of_each_sample_epoch_and_seed(digits):
    digits.redraw = False
    indices, effects = torch.tensor([5, 900, 77]), {"sequence": {"noise": {"std": 0.5}}}
    plain, found = digits[0, indices], []
    for epoch, seed in ((0, 3), (1, 3), (0, 4)):
        batch = augmented(digits, seed=seed, **effects)[epoch, indices]
        found += [(batch["sequence"] - plain["sequence"])[row, :8, :13].round(decimals=4) for row in range(3)]
    assert torch.stack(found).flatten(1).unique(dim=0).shape[0] == 9
    assert torch.stack(found).std().item() == pytest.approx(0.5, rel=0.1)


def test_an_effect_on_one_modality_leaves_the_other_to_the_bit(digits):
    indices = torch.tensor([5, 900, 77])
    plain = digits[0, indices]
    assert torch.equal(augmented(digits, image=EVERYTHING["image"])[0, indices]["sequence"], plain["sequence"])
    assert torch.equal(augmented(digits, sequence=EVERYTHING["sequence"])[0, indices]["image"], plain["image"])


def test_mixup_mixes_what_the_other_effects_made(digits):
    mixed = augmented(digits, **EVERYTHING, mixup={"alpha": 1.0})
    indices = torch.arange(6)
    batch, single = mixed[0, indices], augmented(digits, **EVERYTHING)
    partners = mixed.gather(0, indices)["index"][6:]
    assert (partners != indices).all() and 0 < batch["share"].min() and batch["share"].max() < 1
    for row, (i, partner) in enumerate(zip(indices.tolist(), partners.tolist(), strict=True)):
        own, other = (sample(single[0, torch.tensor([n])], 0) for n in (i, partner))
        part = batch["share"][row]
        torch.testing.assert_close(batch["image"][row], part * own["image"] + (1 - part) * other["image"])
        expected = torch.zeros(max(own["length"], other["length"]), 39)
        expected[: own["length"]] += part * own["sequence"]
        expected[: other["length"]] += (1 - part) * other["sequence"]
        assert batch["length"][row] == len(expected)
        torch.testing.assert_close(batch["sequence"][row, : len(expected)], expected)
        assert batch["label"][row] == own["label"] and batch["partner_label"][row] == other["label"]


def test_on_a_gpu_nothing_waits_for_it(digits):
    """On the device `meta` there are no values: whatever would ask for one raises."""
    varied = augmented(digits, **EVERYTHING, mixup={"alpha": 1.0})
    batch = varied.finish(to_device(varied.gather(0, torch.arange(6)), torch.device("meta")))
    on_cpu = varied[0, torch.arange(6)]
    assert {name: tensor.shape for name, tensor in batch.items()} == {n: tensor.shape for n, tensor in on_cpu.items()}
    assert {name for name, tensor in batch.items() if tensor.device.type == "cpu"} == {"present", "index"}


def test_only_the_training_loader_varies_its_samples(config, digits):
    splits = {"train": digits, "val": digits, "test": digits}
    effects = AugmentationConfig.model_validate(EVERYTHING)
    off = build_loaders(config, splits, CPU)
    on = build_loaders(replace(config, data=replace(config.data, augmentation=effects)), splits, CPU)
    assert all(loader.dataset is digits for loader in (*off.values(), on["val"], on["test"]))
    assert isinstance(on["train"].dataset, Augmented) and on["train"].dataset.split is digits
