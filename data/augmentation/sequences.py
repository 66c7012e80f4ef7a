"""Augmentation of sequences of features, by numbers that are given. Whole batches at once."""

from itertools import accumulate

import torch
from torch import Tensor

from data.augmentation.config import MOST_MASKS, FeatureMaskConfig, SequenceAugmentationConfig, TimeMaskConfig

# Numbers of each effect. They have their places whether the effect is on or not, so that none moves another's.
_COUNTS = {"speed": 1, "shift": 1, "gain": 1, "time_mask": 2 * MOST_MASKS, "feature_mask": 2 * MOST_MASKS}
_ENDS = dict(zip(_COUNTS, accumulate(_COUNTS.values()), strict=True))


class SequenceAugmentation:
    """
    Args:
        max_length: frames, beyond which a sequence that got longer is cut off; None: no limit.

    Attributes:
        width: numbers that a sample needs: the same for every config, but 0 where all effects are off.
        needs_noise: whether a sample needs noise too.
    """

    def __init__(self, config: SequenceAugmentationConfig, max_length: int | None = None):
        self.config, self.max_length = config, max_length
        self.width = sum(_COUNTS.values()) if any(effect is not None for _, effect in config) else 0
        self.needs_noise = config.noise is not None

    def lengths(self, length: Tensor, uniform: Tensor) -> Tensor:
        """(B,) int64, on the CPU: frames of each sequence after the augmentation. Both arguments as in a call."""
        stretched = self._stretched(length.cpu(), uniform)
        return stretched if self.max_length is None else stretched.clamp(max=self.max_length)

    def __call__(
        self, sequence: Tensor, length: Tensor, uniform: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T', F) with zeros after each end, and its lengths; each row a function of its own numbers alone.

        Sequences of one frame, which stand for what is absent, stay as they are.

        Args:
            sequence: (B, T, F) float32, normalised. What stands after an end has no part in the result.
            length: (B,) int64; on the CPU it saves waiting for the device.
            uniform: (B, width) in [0, 1), on the CPU.
            noise: (B, T', F), normal with deviation 1, T' the greatest of `lengths`; where needs_noise.
        """
        if not self.width:
            return sequence, length
        config, device = self.config, sequence.device
        before = length.cpu()
        real, after = before > 1, self.lengths(before, uniform)
        frame = torch.arange(int(after.max()))  # (T',)
        hidden = frame >= after[:, None]  # (B, T')
        if config.speed or config.shift:
            sequence = self._resampled(sequence, before, after, frame, uniform)
        else:
            sequence = sequence[:, : len(frame)]
        if config.gain:
            db = config.gain.db * (2 * self._numbers(uniform, "gain") - 1) * real[:, None]
            sequence = sequence * (10 ** (db / 20)).float().to(device)[:, :, None]
        if config.noise:
            sequence = sequence + noise * (config.noise.std * real).to(device)[:, None, None]
        if config.time_mask:
            limit = (config.time_mask.max_share * after).long()
            hidden = hidden | masks(config.time_mask, self._numbers(uniform, "time_mask"), limit, after, len(frame))
        sequence = sequence.masked_fill(hidden.to(device)[:, :, None], 0.0)
        if config.feature_mask:
            features = torch.full_like(after, num_features := sequence.shape[2])
            limit = (config.feature_mask.max_share * features * real).long()
            numbers = self._numbers(uniform, "feature_mask")
            hidden = masks(config.feature_mask, numbers, limit, features, num_features)
            sequence = sequence.masked_fill(hidden.to(device)[:, None, :], 0.0)
        return sequence, after.to(length.device)

    def _stretched(self, length: Tensor, uniform: Tensor) -> Tensor:
        """(B,) frames at the new speed, at least 2, before any is cut off."""
        if not self.config.speed:
            return length
        low, high = self.config.speed.factor
        factor = low + (high - low) * self._numbers(uniform, "speed")[:, 0]
        return torch.where(length > 1, (length / factor).round().long().clamp(min=2), length)

    def _resampled(self, sequence: Tensor, before: Tensor, after: Tensor, frame: Tensor, uniform: Tensor) -> Tensor:
        """(B, T', F) at the new speed, on a straight line between two frames, and then shifted.

        The first frame stays the first and the last the last: the new frame t is at t (before - 1) / (stretched - 1).
        """
        place = frame.expand(len(after), -1)  # (B, T')
        if self.config.shift:
            largest = (self.config.shift.max_share * after).long()
            later = (self._numbers(uniform, "shift")[:, 0] * (2 * largest + 1)).long() - largest
            place = place - later[:, None]
        place = torch.minimum(place.clamp(min=0), after[:, None] - 1)
        steps = (self._stretched(before, uniform) - 1).clamp(min=1)[:, None]
        numerator = place * (before - 1)[:, None]
        low = numerator // steps  # in whole numbers: no rounding moves a frame beyond the last
        row = torch.arange(len(after), device=sequence.device)[:, None]
        first = sequence[row, low.to(sequence.device)]
        if not self.config.speed:
            return first
        high = torch.minimum(low + 1, before[:, None] - 1)
        part = ((numerator % steps) / steps).to(sequence.device)[:, :, None]
        return first * (1 - part) + sequence[row, high.to(sequence.device)] * part

    def _numbers(self, uniform: Tensor, effect: str) -> Tensor:
        """(B, numbers of the effect) float64, in which products with whole numbers are exact enough to be cut off."""
        return uniform[:, _ENDS[effect] - _COUNTS[effect] : _ENDS[effect]].double()


def masks(
    config: TimeMaskConfig | FeatureMaskConfig, uniform: Tensor, limit: Tensor, total: Tensor, size: int
) -> Tensor:
    """(B, size) bool: where one of the masks is. As in SpecAugment, a mask's width is any whole number from 0 to its
    limit, and its start any place where it fits.

    Args:
        uniform: (B, 2 x MOST_MASKS): widths, then starts.
        limit: (B,) the greatest width.
        total: (B,) what there is to be masked, at most `size`.
    """
    widths, starts = uniform.split(MOST_MASKS, dim=1)
    width = (widths[:, : config.count] * (limit[:, None] + 1)).long()  # (B, count)
    start = (starts[:, : config.count] * (total[:, None] - width + 1)).long()
    place = torch.arange(size)[:, None, None]
    return ((place >= start) & (place < start + width)).any(2).T
