import torch
from torchaudio.functional import compute_deltas

from data.transforms import Preparation, network_image_to_rgb, with_deltas


def test_deltas_equal_torchaudio_on_each_sequence_alone_and_padding_is_zero():
    length = torch.tensor([1, 2, 7, 12])
    sequence = torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(0))
    features = with_deltas(sequence, length)
    assert features.shape == (4, 12, 9)
    for row, n in enumerate(length.tolist()):
        alone = sequence[row : row + 1, :n].transpose(1, 2)  # (1, F, n)
        deltas = compute_deltas(alone)
        expected = torch.cat([alone, deltas, compute_deltas(deltas)], dim=1).transpose(1, 2)[0]
        torch.testing.assert_close(features[row, :n], expected)
        assert (features[row, n:] == 0).all()


def test_what_stands_in_the_padding_does_not_matter():
    length = torch.tensor([3, 8])
    sequence = torch.randn(2, 8, 3)
    dirty = sequence.clone()
    dirty[0, 3:] = float("nan")
    assert torch.equal(with_deltas(sequence, length), with_deltas(dirty, length))


def test_images_become_three_normalised_channels():
    means, stds = [0.5, 0.25, 0.125], [0.5, 2.0, 0.25]
    prepare = Preparation(image_size=20, image_mean=means, image_std=stds, deltas=False)
    batch = {
        "image": torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]),
        "sequence": torch.zeros(2, 1, 3),
        "length": torch.ones(2, dtype=torch.int64),
        "present": torch.ones(2, 2, dtype=torch.bool),
    }
    image = prepare(batch)["image"]
    assert image.shape == (2, 3, 20, 20)
    for channel, (black, white) in enumerate([(-1.0, 1.0), (-0.125, 0.375), (-0.5, 3.5)]):
        torch.testing.assert_close(image[0, channel], torch.full((20, 20), black))
        torch.testing.assert_close(image[1, channel], torch.full((20, 20), white))
    torch.testing.assert_close(network_image_to_rgb(image, means, stds)[1], torch.ones(3, 20, 20))
