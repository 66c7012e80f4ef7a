"""Oracles: sequences small enough to be worked out by hand, and torch's interpolate on each sequence alone."""

import pytest
import torch
from torch.nn.functional import interpolate

from data.augmentation.config import FeatureMaskConfig, SequenceAugmentationConfig
from data.augmentation.sequences import SequenceAugmentation, masks

ALMOST_1 = 1 - 2**-24  # the greatest number that is drawn
WIDTH = 19
PLACES = {"speed": 0, "shift": 1, "gain": 2, "time_mask": 3, "feature_mask": 11}
ALL = {
    "speed": {"factor": [0.5, 2.0]},
    "shift": {"max_share": 0.3},
    "gain": {"db": 6.0},
    "noise": {"std": 0.5},
    "time_mask": {"count": 3, "max_share": 0.3},
    "feature_mask": {"count": 2, "max_share": 0.4},
}


def augmentation(max_length: int | None = None, **effects) -> SequenceAugmentation:
    return SequenceAugmentation(SequenceAugmentationConfig.model_validate(effects), max_length)


def numbers(effect: str, *of_effect: float) -> torch.Tensor:
    """(1, WIDTH), the other effects' numbers being 0.9."""
    uniform = torch.full((1, WIDTH), 0.9)
    uniform[0, PLACES[effect] : PLACES[effect] + len(of_effect)] = torch.tensor(of_effect)
    return uniform


def ramp(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """1, 2, ... in (1, T, 1), and its length."""
    return torch.arange(1.0, frames + 1)[None, :, None], torch.tensor([frames])


def random_batch(lengths: list[int], features: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequences with zeros after their ends, their lengths, numbers."""
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randn(len(lengths), max(lengths), features, generator=generator)
    length = torch.tensor(lengths)
    sequence[torch.arange(max(lengths)) >= length[:, None]] = 0
    return sequence, length, torch.rand(len(lengths), WIDTH, generator=generator)


def test_with_all_effects_off_a_batch_is_its_input():
    sequence, length, _ = random_batch([3, 1, 4])
    off = augmentation()
    found, found_length = off(sequence, length, torch.empty(3, 0))
    assert off.width == 0 and not off.needs_noise
    assert found is sequence and found_length is length and off.lengths(length, torch.empty(3, 0)).equal(length)


@pytest.mark.parametrize(("number", "factor"), [(0.0, 0.5), (1 / 3, 1.0), (2 / 3, 1.5), (ALMOST_1, 2.0)])
def test_speed_keeps_the_first_and_the_last_frame_and_what_is_straight(number, factor):
    sequence, length = ramp(7)
    found, found_length = augmentation(speed={"factor": [0.5, 2.0]})(sequence, length, numbers("speed", number))
    frames = round(7 / factor)
    assert found_length.tolist() == [frames] and found.shape == (1, frames, 1)
    assert found.flatten().tolist() == pytest.approx(torch.linspace(1, 7, frames).tolist(), abs=1e-6)


def test_speed_is_torch_interpolation_of_each_sequence_alone():
    sequence, length, uniform = random_batch([9, 2, 30, 17, 1])
    speed = augmentation(speed={"factor": [0.5, 2.0]})
    found, found_length = speed(sequence, length, uniform)
    factors = 0.5 + 1.5 * uniform[:, 0]
    expected_length = [max(2, round(n / f)) for n, f in zip([9, 2, 30, 17], factors.tolist(), strict=False)] + [1]
    assert found_length.tolist() == expected_length == speed.lengths(length, uniform).tolist()
    for row, (before, after) in enumerate(zip([9, 2, 30, 17], expected_length, strict=False)):
        alone = sequence[row : row + 1, :before].transpose(1, 2)
        expected = interpolate(alone, after, mode="linear", align_corners=True).transpose(1, 2)[0]
        assert torch.allclose(found[row, :after], expected, atol=1e-5)
        assert not found[row, after:].any()


def test_no_sequence_becomes_longer_than_the_limit_or_shorter_than_two_frames():
    sequence, length = ramp(5)
    slow = augmentation(7, speed={"factor": [0.5, 0.5]})
    found, found_length = slow(sequence, length, numbers("speed", 0.0))
    assert found_length.tolist() == [7]  # of 10, whose steps are 4/9
    assert found.flatten().tolist() == pytest.approx([1 + 4 / 9 * t for t in range(7)], abs=1e-6)
    fast = augmentation(7, speed={"factor": [4.0, 4.0]})
    found, _ = fast(*ramp(3), numbers("speed", 0.0))
    assert found.flatten().tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.0, [3, 4, 5, 6, 7, 8, 9, 10, 10, 10]),
        (0.39, [2, 3, 4, 5, 6, 7, 8, 9, 10, 10]),
        (0.5, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (ALMOST_1, [1, 1, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_a_shift_repeats_the_frame_at_the_edge(number, expected):
    found, length = augmentation(shift={"max_share": 0.2})(*ramp(10), numbers("shift", number))
    assert found.flatten().tolist() == expected and length.tolist() == [10]


@pytest.mark.parametrize(("number", "factor"), [(0.0, 10**-0.3), (0.5, 1.0), (0.75, 10**0.15), (ALMOST_1, 10**0.3)])
def test_gain_is_a_factor_of_so_many_decibels(number, factor):
    found, _ = augmentation(gain={"db": 6.0})(*ramp(4), numbers("gain", number))
    assert found.flatten().tolist() == pytest.approx([factor * value for value in (1, 2, 3, 4)], rel=1e-6)


def test_noise_is_what_was_given_times_its_deviation_and_ends_where_the_sequence_ends():
    noisy = augmentation(noise={"std": 0.5})
    noise = torch.tensor([[[2.0], [-4.0], [6.0]], [[8.0], [10.0], [12.0]], [[1.0], [1.0], [1.0]]])
    sequence, length = torch.tensor([[[1.0], [1.0], [1.0]], [[3.0], [3.0], [0.0]], [[0.0], [0.0], [0.0]]]), [3, 2, 1]
    found, _ = noisy(sequence, torch.tensor(length), torch.zeros(3, WIDTH), noise)
    assert noisy.needs_noise
    assert found[:, :, 0].tolist() == [[2.0, -1.0, 4.0], [7.0, 8.0, 0.0], [0.0, 0.0, 0.0]]


def test_time_masks_are_zeros_where_their_numbers_say():
    """Of 10 frames at most 4: a width of 0 to 4, then a start among those that leave room for it."""
    one = augmentation(time_mask={"count": 1, "max_share": 0.4})
    found, _ = one(*ramp(10), numbers("time_mask", 0.7, 0.9, 0.9, 0.9, 0.5))  # 3 frames from the fifth on
    assert found.flatten().tolist() == [1, 2, 3, 4, 0, 0, 0, 8, 9, 10]
    two = augmentation(time_mask={"count": 2, "max_share": 0.4})
    found, _ = two(*ramp(10), numbers("time_mask", ALMOST_1, 0.2, 0.9, 0.9, ALMOST_1, 0.0))  # the last 4, the first
    assert found.flatten().tolist() == [0, 2, 3, 4, 5, 6, 0, 0, 0, 0]
    found, _ = two(*ramp(10), numbers("time_mask", 0.19, 0.0))
    assert torch.equal(found, ramp(10)[0])


def test_feature_masks_are_zeros_in_every_frame():
    sequence, length, _ = random_batch([3, 2], features=5)
    masked = augmentation(feature_mask={"count": 1, "max_share": 0.4})
    uniform = torch.cat([numbers("feature_mask", ALMOST_1, 0, 0, 0, 0.25), numbers("feature_mask", 0.0)])
    found, _ = masked(sequence, length, uniform)
    expected = sequence.clone()
    expected[0, :, 1:3] = 0
    assert torch.equal(found, expected)


def test_widths_and_places_of_masks_are_spread_evenly():
    """Of at most 3 among 6: widths 0 to 3 alike, and each place alike for those of one width."""
    uniform = torch.full((4 * 60, 8), 0.9)
    uniform[:, 0] = torch.arange(4).repeat_interleave(60) / 4 + 0.01
    uniform[:, 4] = (torch.arange(60).repeat(4) + 0.5) / 60
    total = torch.full((240,), 6)
    hidden = masks(FeatureMaskConfig(max_share=0.5), uniform, torch.full((240,), 3), total, 6)
    assert hidden.sum(1).tolist() == [0] * 60 + [1] * 60 + [2] * 60 + [3] * 60
    assert hidden[60:120].sum(0).tolist() == [10] * 6
    assert hidden[180:].sum(0).tolist() == [15, 30, 45, 45, 30, 15]


def test_a_sequence_is_the_same_in_every_batch_and_beside_any_padding():
    """Bit for bit; what stands after an end has no part in it."""
    lengths = [1, 2, 7, 40, 23, 16, 5, 31]
    sequence, length, uniform = random_batch(lengths)
    everything = augmentation(45, **ALL)
    after = everything.lengths(length, uniform)
    noise = torch.randn(8, int(after.max()), 5, generator=torch.Generator().manual_seed(1))
    found, found_length = everything(sequence, length, uniform, noise)
    assert torch.equal(found_length, after) and found.shape == (8, int(after.max()), 5)
    for row, before in enumerate(lengths):
        one, frames = slice(row, row + 1), int(after[row])
        alone, alone_length = everything(sequence[one, :before], length[one], uniform[one], noise[one, :frames])
        assert torch.equal(alone, found[one, :frames]) and alone_length.tolist() == [frames]
        assert not found[row, frames:].any()
    sequence[torch.arange(40) >= length[:, None]] = torch.nan
    noise[torch.arange(noise.shape[1]) >= after[:, None]] = torch.nan
    assert torch.equal(everything(sequence, length, uniform, noise)[0], found)


def test_a_sequence_of_one_frame_stays_as_it_is():
    sequence, length = torch.tensor([[[3.0, -2.0]]]), torch.tensor([1])
    everything = augmentation(**(ALL | {"time_mask": {"max_share": 0.99}, "feature_mask": {"max_share": 0.99}}))
    for number in (0.0, 0.3, ALMOST_1):
        found, found_length = everything(sequence, length, torch.full((1, WIDTH), number), torch.ones(1, 1, 2))
        assert torch.equal(found, sequence) and found_length.tolist() == [1]


@pytest.mark.parametrize("effect", ALL)
def test_an_effect_draws_the_same_whatever_others_are_on(effect):
    """The others are on, and change nothing."""
    idle = {
        "speed": {"factor": [1.0, 1.0]},
        "shift": {"max_share": 1e-9},
        "gain": {"db": 1e-9},
        "noise": {"std": 1e-9},
        "time_mask": {"max_share": 1e-9},
        "feature_mask": {"max_share": 1e-9},
    }
    sequence, length, uniform = random_batch([20, 35])
    alone, among_others = augmentation(**{effect: ALL[effect]}), augmentation(**(idle | {effect: ALL[effect]}))
    assert alone.width == among_others.width == WIDTH
    noise = torch.randn(2, int(alone.lengths(length, uniform).max()), 5, generator=torch.Generator().manual_seed(1))
    changed, changed_length = alone(sequence, length, uniform, noise)
    found, found_length = among_others(sequence, length, uniform, noise)
    assert torch.allclose(found, changed, atol=1e-5) and torch.equal(found_length, changed_length)
    assert changed.shape != sequence.shape or not torch.allclose(changed, sequence, atol=0.1)


def test_no_value_is_read_back_from_the_device():
    """On the device "meta" there are none; lengths are given on the CPU."""
    _, length, uniform = random_batch([20, 35])
    everything = augmentation(**ALL)
    frames = int(everything.lengths(length, uniform).max())
    sequence, noise = torch.empty(2, 35, 5, device="meta"), torch.empty(2, frames, 5, device="meta")
    assert everything(sequence, length, uniform, noise)[0].shape == (2, frames, 5)
