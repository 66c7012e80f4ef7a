"""Augmentation of images, by numbers that are given: torchvision's functions, one image at a time."""

import math
from itertools import accumulate

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from data.augmentation.config import AffineConfig, ColourConfig, CropConfig, EraseConfig, ImageAugmentationConfig
from data.transforms import one_thread

# Numbers of each effect. They have their places whether the effect is on or not, so that none moves another's.
_COUNTS = {"crop": 4, "flip": 2, "affine": 4, "colour": 4, "erase": 5}
_ENDS = dict(zip(_COUNTS, accumulate(_COUNTS.values()), strict=True))


class ImageAugmentation:
    """
    Attributes:
        width: numbers that a sample needs: the same for every config, but 0 where all effects are off.
    """

    def __init__(self, config: ImageAugmentationConfig, image_size: int):
        self.config, self.image_size = config, image_size
        self.width = sum(_COUNTS.values()) if any(effect is not None for _, effect in config) else 0

    def __call__(self, image: Tensor, uniform: Tensor) -> Tensor:
        """(B, C, image_size, image_size), each a function of its own image and numbers alone.

        Args:
            image: (B, C, h, w) float32 with black 0 and white 1, C 1 or 3; enlarged before it is cropped, where it is
                smaller than image_size.
            uniform: (B, width) in [0, 1), on the CPU.
        """
        size = [self.image_size, self.image_size]
        if self.config.crop:
            size = [max(size[0], image.shape[2]), max(size[1], image.shape[3])]
        image = functional.resize(image, size, antialias=True)
        if not self.width:
            return image
        return torch.stack([self._augment(*row) for row in zip(image, uniform.tolist(), strict=True)])

    def _augment(self, image: Tensor, uniform: list[float]) -> Tensor:
        """image: (C, h, w), of image_size where nothing is cropped."""
        config, numbers = self.config, {n: uniform[end - _COUNTS[n] : end] for n, end in _ENDS.items()}
        size = [self.image_size, self.image_size]
        if config.crop:
            box = crop_box(config.crop, numbers["crop"], *image.shape[1:])
            image = functional.resized_crop(image, *box, size, antialias=True)
        if config.flip:
            horizontal, vertical = numbers["flip"]
            image = functional.horizontal_flip(image) if horizontal < config.flip.horizontal else image
            image = functional.vertical_flip(image) if vertical < config.flip.vertical else image
        if config.affine:
            settings = affine_settings(config.affine, numbers["affine"], self.image_size)
            fill = [config.affine.fill] if config.affine.fill else None
            image = functional.affine(image, **settings, interpolation=InterpolationMode.BILINEAR, fill=fill)
        if config.colour and (factors := colour_factors(config.colour, numbers["colour"])):
            image = _recolour(image, factors)
        if config.erase and numbers["erase"][0] < config.erase.p:
            box = erase_box(config.erase, numbers["erase"][1:], self.image_size)
            image = functional.erase(image, *box, torch.tensor(config.erase.value))
        return image


def crop_box(config: CropConfig, uniform: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels."""
    area, ratio, top, left = uniform
    rows, columns = _edges(config.scale, config.ratio, area, ratio, height, width)
    return int(top * (height - rows + 1)), int(left * (width - columns + 1)), rows, columns


def affine_settings(config: AffineConfig, uniform: list[float], image_size: int) -> dict:
    """Arguments of torchvision's `affine`: degrees clockwise, [right, down] in pixels."""
    angle, right, down, scale = uniform
    largest = config.translate * image_size
    return {
        "angle": _between(-config.degrees, config.degrees, angle),
        "translate": [_between(-largest, largest, right), _between(-largest, largest, down)],
        "scale": _between(*config.scale, scale),
        "shear": [0.0, 0.0],
    }


def colour_factors(config: ColourConfig, uniform: list[float]) -> dict[str, float]:
    """By name, of those that are not off."""
    spreads = {name: spread for name, spread in config}
    middles = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    drawn = zip(middles.items(), uniform, strict=True)
    return {n: _between(m - spreads[n], m + spreads[n], number) for (n, m), number in drawn if spreads[n]}


def erase_box(config: EraseConfig, uniform: list[float], image_size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels."""
    area, ratio, top, left = uniform
    rows, columns = _edges(config.scale, config.ratio, area, ratio, image_size, image_size)
    return int(top * (image_size - rows + 1)), int(left * (image_size - columns + 1)), rows, columns


def _recolour(image: Tensor, factors: dict[str, float]) -> Tensor:
    """torchvision's functions clamp to [0, 1]: what lies beyond, such as noise, is added again. A grey image has no
    saturation and no hue, also where it has three channels because others of its batch do."""
    inside = image.clamp(0, 1)
    beyond = image - inside
    adjusted = _adjusted(inside, factors)
    if len(image) == 3:
        adjusted = torch.where((image == image[:1]).all(), _adjusted(inside[:1], factors), adjusted)
    return adjusted + beyond


def _adjusted(image: Tensor, factors: dict[str, float]) -> Tensor:
    with one_thread():  # the mean grey
        for name, factor in factors.items():
            image = getattr(functional, f"adjust_{name}")(image, factor)
    return image


def _edges(
    scale: list[float], ratio: list[float], area: float, shape: float, height: int, width: int
) -> tuple[int, int]:
    """(rows, columns) of a rectangle, from the numbers `area` and `shape`."""
    share = _between(*scale, area)
    wide = math.exp(_between(math.log(ratio[0]), math.log(ratio[1]), shape))
    rows, columns = round(height * math.sqrt(share / wide)), round(width * math.sqrt(share * wide))
    return min(max(rows, 1), height), min(max(columns, 1), width)


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform
