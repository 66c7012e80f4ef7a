"""The section `data.augmentation`: how training samples are varied. Every effect is a section of its own; null: off."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from app.section import Section

MOST_MASKS = 4  # of one kind on a sample: the numbers for so many are drawn, however many there are


def _ascending(value: list[float]) -> list[float]:
    if value[0] > value[1]:
        raise ValueError(f"found {value}, the first must be at most the second")
    return value


def _range_of(number: Any) -> Any:
    """[least, greatest]"""
    return Annotated[list[number], Field(min_length=2, max_length=2), AfterValidator(_ascending)]


Shares = _range_of(Annotated[float, Field(gt=0, le=1)])
Ratios = _range_of(Annotated[float, Field(ge=0.1, le=10)])
Speeds = _range_of(Annotated[float, Field(ge=0.25, le=4)])


class CropConfig(Section):
    scale: Shares = Field(description="[least, greatest] area of the crop, as a share of the image's")
    ratio: Ratios = Field(
        [0.75, 1.333],
        description="[least, greatest] width over height of the crop, where a square image has 1; drawn evenly on a "
        "logarithmic scale; an edge that would be longer than the image's is as long as that",
    )


class FlipConfig(Section):
    horizontal: float = Field(0.0, ge=0, le=1, description="probability that left and right are exchanged")
    vertical: float = Field(0.0, ge=0, le=1, description="probability that top and bottom are exchanged")


class AffineConfig(Section):
    degrees: float = Field(0.0, ge=0, le=180, description="largest rotation, in degrees, clockwise or not")
    translate: float = Field(0.0, ge=0, le=1, description="largest shift along each edge, as a share of the edge")
    scale: Ratios = Field(
        [1.0, 1.0],
        description="[least, greatest] factor of an object's size; the image's size stays",
    )
    fill: float = Field(0.0, ge=0, le=1, description="value where nothing of the image is; 0 is black, 1 is white")


class ColourConfig(Section):
    brightness: float = Field(0.0, ge=0, le=1, description="b: all values times a factor from 1 - b to 1 + b")
    contrast: float = Field(0.0, ge=0, le=1, description="c: differences to the image's mean grey, likewise")
    saturation: float = Field(0.0, ge=0, le=1, description="s: differences to each pixel's own grey, likewise")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest turn of the colour wheel, in turns: 0.5 is the opposite")


class EraseConfig(Section):
    p: float = Field(gt=0, le=1, description="probability that a rectangle is overwritten")
    scale: Shares = Field(
        [0.02, 0.33],
        description="[least, greatest] area of the rectangle, as a share of the image's",
    )
    ratio: Ratios = Field(
        [0.3, 3.3],
        description="[least, greatest] width over height of the rectangle, as in crop",
    )
    value: float = Field(0.5, ge=0, le=1, description="what it is overwritten with; 0 is black, 1 is white")


class ImageAugmentationConfig(Section):
    crop: CropConfig | None = Field(None, description="a part of the image, resized to data.image_size; null: off")
    flip: FlipConfig | None = Field(None, description="mirrored; null: off")
    affine: AffineConfig | None = Field(None, description="turned, shifted and scaled about the middle; null: off")
    colour: ColourConfig | None = Field(
        None, description="brightness, contrast, saturation and hue, in this order; null: off"
    )
    erase: EraseConfig | None = Field(None, description="a rectangle is overwritten; null: off")


class SpeedConfig(Section):
    factor: Speeds = Field(description="[least, greatest]; 1.25: a quarter faster, so 0.8 times the frames")


class ShiftConfig(Section):
    max_share: float = Field(
        gt=0,
        lt=1,
        description="largest shift, earlier or later, as a share of the sequence's frames; the last or first frame is "
        "repeated where it leaves a gap",
    )


class GainConfig(Section):
    db: float = Field(gt=0, le=60, description="d: features times 10^(x/20), x from -d to d decibels")


class NoiseConfig(Section):
    std: float = Field(gt=0, description="deviation of the noise on each feature, in that feature's deviations")


class TimeMaskConfig(Section):
    count: int = Field(1, ge=1, le=MOST_MASKS, description="masks on a sequence; they may overlap")
    max_share: float = Field(gt=0, lt=1, description="longest mask, as a share of the sequence's frames")


class FeatureMaskConfig(Section):
    count: int = Field(1, ge=1, le=MOST_MASKS, description="masks on a sequence; they may overlap")
    max_share: float = Field(
        gt=0, lt=1, description="widest mask (of features that stand side by side), as a share of the features"
    )


class SequenceAugmentationConfig(Section):
    speed: SpeedConfig | None = Field(None, description="faster or slower, by interpolation; null: off")
    shift: ShiftConfig | None = Field(None, description="earlier or later; the length stays; null: off")
    gain: GainConfig | None = Field(None, description="a factor on the normalised features; null: off")
    noise: NoiseConfig | None = Field(None, description="normal noise on the normalised features; null: off")
    time_mask: TimeMaskConfig | None = Field(
        None, description="stretches of frames are 0, each feature's mean (SpecAugment); null: off"
    )
    feature_mask: FeatureMaskConfig | None = Field(
        None, description="features are 0, their mean, in the whole sequence (SpecAugment); null: off"
    )


class MixupConfig(Section):
    alpha: float = Field(
        gt=0,
        le=100,
        description="a sample's share in the mixture is drawn from Beta(alpha, alpha): 0.2 leaves most nearly unmixed, "
        "1 draws all shares alike",
    )


class AugmentationConfig(Section):
    """Numbers are drawn evenly from their ranges, anew for each sample and epoch."""

    image: ImageAugmentationConfig = Field(
        ImageAugmentationConfig(), description="of images with black 0 and white 1, in the order of these keys"
    )
    sequence: SequenceAugmentationConfig = Field(
        SequenceAugmentationConfig(), description="of normalised features, before deltas, in the order of these keys"
    )
    mixup: MixupConfig | None = Field(
        None,
        description="image, sequence and label are each mixed with those of one other training sample that has the "
        "same modalities; null: off",
    )


def stored_size(config: ImageAugmentationConfig, image_size: int) -> int:
    """Pixels of an edge that an image needs for its smallest crop to have `image_size` pixels along each edge."""
    if config.crop is None:
        return image_size
    low, high = config.crop.ratio
    return math.ceil(image_size / math.sqrt(config.crop.scale[0] * min(low, 1 / high)))
