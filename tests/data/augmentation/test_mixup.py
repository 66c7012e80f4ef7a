"""Oracles: scipy's Beta distribution, and numbers worked out by hand."""

import pytest
import torch
from scipy.stats import beta

from data.augmentation.mixup import Partners, mix, share

PRESENT = torch.tensor([[True, True], [True, False], [True, True], [False, True], [True, False], [True, True]])


def test_a_partner_has_the_same_modalities():
    """Samples with both: 0, 2, 5; with an image only: 1, 4; with a sequence only: 3."""
    partners = Partners(PRESENT)
    indices = torch.tensor([0, 0, 0, 2, 5, 1, 1, 4, 3])
    uniform = torch.tensor([0.0, 0.34, 1 - 2**-24, 0.32, 0.5, 0.49, 0.5, 0.0, 0.9])
    assert partners(uniform, indices).tolist() == [0, 2, 5, 0, 2, 1, 4, 1, 3]


def test_every_sample_of_a_group_is_as_likely():
    found = Partners(PRESENT)((torch.arange(300) + 0.5) / 300, torch.full((300,), 2))
    assert found.bincount(minlength=6).tolist() == [100, 0, 100, 0, 0, 100]


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0, 100.0])
def test_shares_are_of_a_beta_distribution(alpha):
    uniform = torch.linspace(0, 1 - 2**-24, 1001)
    shares = share(uniform, alpha)
    assert shares.dtype == torch.float32 and shares.min() >= 0 and shares.max() <= 1
    assert shares.tolist() == pytest.approx(beta.ppf(uniform.numpy(), alpha, alpha).tolist(), abs=1e-6)
    if alpha == 1.0:
        assert torch.allclose(shares, uniform, atol=1e-6)


def test_image_and_sequence_are_mixed_with_those_of_one_partner():
    image = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    sequence = torch.tensor([[8.0, 8.0, 0.0], [4.0, 0.0, 0.0], [4.0, 4.0, 4.0], [8.0, 8.0, 0.0]])[:, :, None]
    batch = {
        "image": image,
        "sequence": sequence,
        "length": torch.tensor([2, 1, 3, 2]),
        "present": torch.tensor([[True, True], [True, True]]).repeat(2, 1),
        "label": torch.tensor([5, 6, 7, 6]),
        "index": torch.tensor([50, 60, 70, 61]),
        "share": torch.tensor([0.75, 1.0]),
    }
    mixed = mix(batch)
    assert mixed["image"].shape == (2, 3, 2, 2)
    assert mixed["image"][:, 2, 1, 1].tolist() == [1.5, 2.0]  # 0.75 x 1 + 0.25 x 3, and 2
    assert mixed["sequence"][:, :, 0].tolist() == [[7.0, 7.0, 1.0], [4.0, 0.0, 0.0]]
    assert {name: mixed[name].tolist() for name in ("length", "label", "partner_label", "index", "share")} == {
        "length": [3, 2],
        "label": [5, 6],
        "partner_label": [7, 6],
        "index": [50, 60],
        "share": [0.75, 1.0],
    }
    assert mixed["present"].shape == (2, 2)
    assert len(batch["label"]) == 4  # the batch that was given is as it was
