import torch
from torchaudio.functional import compute_deltas

from data.transforms import IMAGENET_MEAN, IMAGENET_STD, gray_to_network_image, network_image_to_rgb, with_deltas


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
    image = gray_to_network_image(torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]), 20)
    assert image.shape == (2, 3, 20, 20)
    for channel in range(3):
        mean, std = IMAGENET_MEAN[channel], IMAGENET_STD[channel]
        torch.testing.assert_close(image[0, channel], torch.full((20, 20), -mean / std))
        torch.testing.assert_close(image[1, channel], torch.full((20, 20), (1 - mean) / std))
    torch.testing.assert_close(network_image_to_rgb(image)[1], torch.ones(3, 20, 20))
