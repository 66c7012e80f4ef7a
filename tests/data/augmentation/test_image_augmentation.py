"""Oracles: pictures small enough to be worked out by hand, and torchvision's functions with the numbers written out."""

import math

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from data.augmentation.config import CropConfig, EraseConfig, ImageAugmentationConfig, stored_size
from data.augmentation.images import (
    ImageAugmentation,
    affine_settings,
    colour_factors,
    crop_box,
    erase_box,
)

ALMOST_1 = 1 - 2**-24  # the greatest number that is drawn
WIDTH = 19
PLACES = {"crop": 0, "flip": 4, "affine": 6, "colour": 10, "erase": 14}
ALL = {
    "crop": {"scale": [0.3, 0.9]},
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "affine": {"degrees": 20.0, "translate": 0.2, "scale": [0.8, 1.2], "fill": 0.7},
    "colour": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.3},
    "erase": {"p": 0.5},
}


def augmentation(image_size: int, **effects) -> ImageAugmentation:
    return ImageAugmentation(ImageAugmentationConfig.model_validate(effects), image_size)


def numbers(effect: str, *of_effect: float) -> torch.Tensor:
    """(1, WIDTH), the other effects' numbers being 0.9."""
    uniform = torch.full((1, WIDTH), 0.9)
    uniform[0, PLACES[effect] : PLACES[effect] + len(of_effect)] = torch.tensor(of_effect)
    return uniform


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_with_all_effects_off_images_are_only_resized():
    off, image = augmentation(8), random_images(3, 3, 8, 8)
    assert off.width == 0
    assert torch.equal(off(image, torch.empty(3, 0)), image)
    for size in ((20, 12), (5, 5)):
        image = random_images(3, 1, *size)
        expected = interpolate(image, (8, 8), mode="bilinear", antialias=True)
        assert torch.equal(off(image, torch.empty(3, 0)), expected)


def test_a_flip_mirrors_the_images_whose_number_is_below_the_probability():
    flip = augmentation(2, flip={"horizontal": 0.5, "vertical": 0.25})
    image = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).expand(4, 1, 2, 2)
    uniform = torch.full((4, WIDTH), 0.9)
    uniform[:, 4:6] = torch.tensor([[0.5, 0.25], [0.49, 0.9], [0.9, 0.24], [0.0, 0.0]])
    flipped = flip(image, uniform)[:, 0].tolist()
    assert flipped == torch.tensor(
        [[[0.1, 0.2], [0.3, 0.4]], [[0.2, 0.1], [0.4, 0.3]], [[0.3, 0.4], [0.1, 0.2]], [[0.4, 0.3], [0.2, 0.1]]]
    ).tolist()  # fmt: skip
    always = augmentation(2, flip={"horizontal": 1.0})
    assert torch.equal(always(image[:1], numbers("flip", ALMOST_1, 0.0)), image[:1].flip(3))


def test_a_crop_has_its_area_its_ratio_and_its_place():
    config = CropConfig(scale=[0.25, 1.0], ratio=[0.25, 4.0])
    # A quarter of the area, as wide as high: 4 x 4 of 8 x 8, which has 5 places along each edge.
    assert crop_box(config, [0.0, 0.5, 0.0, ALMOST_1], 8, 8) == (0, 4, 4, 4)
    assert crop_box(config, [0.0, 0.5, 0.5, 0.25], 8, 8) == (2, 1, 4, 4)
    # Four times as wide as high: 2 x 8. Of the whole area it would be 4 x 16, so it is 4 x 8.
    assert crop_box(config, [0.0, ALMOST_1, 0.99, 0.99], 8, 8) == (6, 0, 2, 8)
    assert crop_box(config, [ALMOST_1, ALMOST_1, 0.0, 0.0], 8, 8) == (0, 0, 4, 8)
    # The ratio of an image that is not square is that which it has once it is stretched to a square.
    assert crop_box(config, [0.0, 0.5, 0.0, 0.0], 8, 100) == (0, 0, 4, 50)
    # No crop is smaller than a pixel.
    assert crop_box(CropConfig(scale=[0.001, 1.0]), [0.0, 0.5, 0.0, 0.0], 8, 8)[2:] == (1, 1)


def test_the_areas_of_crops_are_spread_evenly_over_the_range():
    config = CropConfig(scale=[0.2, 0.8], ratio=[1.0, 1.0])
    areas = [math.prod(crop_box(config, [(i + 0.5) / 1000, 0.5, 0.5, 0.5], 1000, 1000)[2:]) / 1e6 for i in range(1000)]
    assert areas == pytest.approx([0.2 + 0.6 * (i + 0.5) / 1000 for i in range(1000)], abs=1e-3)


def test_a_crop_is_that_of_torchvision_and_an_image_that_is_too_small_is_enlarged_first():
    crop, image = augmentation(4, crop={"scale": [0.25, 1.0], "ratio": [0.25, 4.0]}), random_images(1, 3, 16, 16)
    expected = functional.resized_crop(image, 4, 2, 8, 8, [4, 4], antialias=True)
    assert torch.equal(crop(image, numbers("crop", 0.0, 0.5, 0.5, 0.25)), expected)
    small = image[:, :, :2, :3]
    expected = functional.resized_crop(functional.resize(small, [4, 4]), 1, 2, 2, 2, [4, 4], antialias=True)
    assert torch.equal(crop(small, numbers("crop", 0.0, 0.5, 0.4, 0.9)), expected)


@pytest.mark.parametrize("scale", [[0.05, 0.5], [0.36, 1.0], [1.0, 1.0]])
@pytest.mark.parametrize("ratio", [[0.75, 1.333], [1.0, 1.0], [2.0, 3.0], [0.5, 0.6]])
def test_no_crop_of_a_stored_image_is_enlarged(scale, ratio):
    config = ImageAugmentationConfig(crop=CropConfig(scale=scale, ratio=ratio))
    size = stored_size(config, 64)
    edges = [crop_box(config.crop, [0.0, shape, 0.0, 0.0], size, size)[2:] for shape in (0.0, 0.5, ALMOST_1)]
    assert min(min(pair) for pair in edges) in (64, 65)


def test_images_are_stored_as_the_network_reads_them_where_nothing_is_cropped():
    assert stored_size(ImageAugmentationConfig(), 64) == 64
    half = CropConfig(scale=[0.25, 1.0], ratio=[1.0, 1.0])
    assert stored_size(ImageAugmentationConfig(crop=half), 64) == 128


def test_affine_settings_cover_their_ranges():
    config = ImageAugmentationConfig.model_validate({"affine": ALL["affine"]}).affine
    lowest, middle, highest = (affine_settings(config, [number] * 4, 50) for number in (0.0, 0.5, ALMOST_1))
    assert lowest == {"angle": -20.0, "translate": [-10.0, -10.0], "scale": 0.8, "shear": [0.0, 0.0]}
    assert middle == {"angle": 0.0, "translate": [0.0, 0.0], "scale": pytest.approx(1.0), "shear": [0.0, 0.0]}
    assert highest["angle"] == pytest.approx(20) and highest["scale"] == pytest.approx(1.2)
    assert highest["translate"] == pytest.approx([10, 10])


def test_rotation_shift_and_scale():
    image = random_images(1, 1, 8, 8)
    turned = augmentation(8, affine={"degrees": 180.0})(image, numbers("affine", 0.75, 0.5, 0.5, 0.5))
    assert torch.allclose(turned, image.rot90(-1, (2, 3)), atol=1e-5)  # 90 degrees clockwise
    shifted = augmentation(8, affine={"translate": 0.5, "fill": 0.7})(image, numbers("affine", 0.5, 0.75, 0.25, 0.5))
    expected = torch.full((1, 1, 8, 8), 0.7)
    expected[:, :, :6, 2:] = image[:, :, 2:, :6]  # 2 pixels right, 2 up
    assert torch.allclose(shifted, expected, atol=1e-5)
    square = torch.zeros(1, 1, 8, 8)
    square[:, :, 3:5, 3:5] = 1
    doubled = augmentation(8, affine={"scale": [0.5, 2.0]})(square, numbers("affine", 0.5, 0.5, 0.5, ALMOST_1))
    assert torch.equal(doubled[0, 0, 3:5, 3:5], torch.ones(2, 2)) and doubled.sum().item() == pytest.approx(16)


def test_affine_is_that_of_torchvision_with_these_numbers():
    image = random_images(2, 3, 8, 8)
    uniform = torch.cat([numbers("affine", 0.1, 0.2, 0.3, 0.4), numbers("affine", 0.9, 0.8, 0.7, 0.6)])
    config = {"degrees": 20.0, "translate": 0.25, "scale": [0.8, 1.2]}
    settings = [(-16.0, [-1.2, -0.8], 0.96), (16.0, [1.2, 0.8], 1.04)]
    for row, (angle, translate, scale) in enumerate(settings):
        expected = functional.affine(image[row], angle, translate, scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        assert torch.allclose(augmentation(8, affine=config)(image, uniform)[row], expected, atol=1e-5)


def test_colour_factors_cover_their_ranges():
    config = ImageAugmentationConfig.model_validate({"colour": ALL["colour"]}).colour
    expected = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.3, 0.3)}
    assert colour_factors(config, [0.0] * 4) == {name: low for name, (low, _) in expected.items()}
    assert colour_factors(config, [ALMOST_1] * 4) == pytest.approx({name: high for name, (_, high) in expected.items()})
    some = ImageAugmentationConfig.model_validate({"colour": {"contrast": 1.0}}).colour
    assert colour_factors(some, [0.1, 0.25, 0.1, 0.1]) == {"contrast": 0.5}


def test_colours_by_hand():
    grey = torch.tensor([0.2, 0.4, 0.4, 0.6]).view(1, 1, 2, 2)
    factor_half = numbers("colour", 0.25, 0.25, 0.25, 0.25)
    darker = augmentation(2, colour={"brightness": 1.0})(grey, factor_half)
    assert darker.flatten().tolist() == pytest.approx([0.1, 0.2, 0.2, 0.3])
    flatter = augmentation(2, colour={"contrast": 1.0})(grey, factor_half)  # half of the differences to 0.4
    assert flatter.flatten().tolist() == pytest.approx([0.3, 0.4, 0.4, 0.5])
    unchanged = augmentation(2, colour={"saturation": 1.0, "hue": 0.5})
    assert torch.equal(unchanged(grey, factor_half), grey)

    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    cyan = augmentation(2, colour={"hue": 0.5})(red, numbers("colour", 0.0, 0.0, 0.0, 0.0))
    assert cyan[0, :, 0, 0].tolist() == pytest.approx([0, 1, 1])
    paler = augmentation(2, colour={"saturation": 1.0})(red, factor_half)  # red is a grey of 0.2989
    assert paler[0, :, 0, 0].tolist() == pytest.approx([0.64945, 0.14945, 0.14945])


def test_colours_are_those_of_torchvision_one_after_another():
    image = random_images(1, 3, 8, 8)
    expected = functional.adjust_contrast(functional.adjust_brightness(image, 0.8), 1.25)
    expected = functional.adjust_hue(functional.adjust_saturation(expected, 0.6), 0.15)
    found = augmentation(8, colour=ALL["colour"])(image, numbers("colour", 0.3, 0.75, 0.1, 0.75))
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_lies_beyond_black_and_white_is_kept_by_colours():
    image = torch.tensor([-0.25, 0.5, 1.0, 1.5]).view(1, 1, 2, 2)
    darker = augmentation(2, colour={"brightness": 1.0})(image, numbers("colour", 0.25))
    assert darker.flatten().tolist() == pytest.approx([-0.25, 0.25, 0.5, 1.0])


def test_a_rectangle_is_erased():
    config = EraseConfig(p=0.5, scale=[0.25, 0.75], ratio=[0.25, 4.0])
    assert erase_box(config, [0.0, 0.5, 0.5, 0.0], 8) == (2, 0, 4, 4)
    assert erase_box(config, [0.0, 0.0, 0.9, 0.9], 8) == (0, 6, 8, 2)
    erase, image = augmentation(8, erase={"p": 0.5, "scale": [0.25, 0.75], "value": 0.25}), random_images(2, 3, 8, 8)
    uniform = torch.cat([numbers("erase", 0.49, 0.0, 0.5, 0.5, 0.0), numbers("erase", 0.5, 0.0, 0.5, 0.5, 0.0)])
    expected = image.clone()
    expected[0, :, 2:6, :4] = 0.25
    assert torch.equal(erase(image, uniform), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_in_every_batch(channels):
    everything, image = augmentation(16, **ALL), random_images(12, channels, 24, 20)
    uniform = torch.rand(12, WIDTH, generator=torch.Generator().manual_seed(1))
    before = image.clone()
    batch = everything(image, uniform)
    assert batch.shape == (12, channels, 16, 16) and torch.equal(image, before)
    alone = torch.cat([everything(image[i : i + 1], uniform[i : i + 1]) for i in range(12)])
    assert torch.equal(batch, alone)
    assert torch.equal(everything(image.flip(0), uniform.flip(0)).flip(0), batch)


@pytest.mark.parametrize("effect", ALL)
def test_an_effect_draws_the_same_whatever_others_are_on(effect):
    """The others are on, and change nothing: they leave each image as it is, with whatever number."""
    idle = {
        "crop": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]},
        "flip": {},
        "affine": {},
        "colour": {},
        "erase": {"p": 1e-9},
    }
    image, uniform = random_images(6, 3, 16, 16), torch.rand(6, WIDTH, generator=torch.Generator().manual_seed(2))
    alone, among_others = augmentation(16, **{effect: ALL[effect]}), augmentation(16, **(idle | {effect: ALL[effect]}))
    assert alone.width == among_others.width == WIDTH
    changed = alone(image, uniform)
    assert torch.allclose(among_others(image, uniform), changed, atol=1e-5)
    assert not torch.allclose(changed, image, atol=0.1)


def test_no_value_is_read_back_from_the_device():
    """On the device "meta" there are none."""
    image = torch.empty(4, 3, 24, 24, device="meta")
    assert augmentation(16, **ALL)(image, torch.zeros(4, WIDTH)).shape == (4, 3, 16, 16)


def test_a_grey_image_is_varied_alike_beside_coloured_ones():
    """It has three channels then."""
    grey, uniform = random_images(12, 1, 24, 20), torch.rand(12, WIDTH, generator=torch.Generator().manual_seed(1))
    everything = augmentation(16, **ALL)
    assert torch.equal(everything(grey.expand(-1, 3, -1, -1), uniform), everything(grey, uniform).expand(-1, 3, -1, -1))


def test_colours_do_not_depend_on_the_number_of_threads():
    """Large enough for torch to share the work."""
    colours, image = augmentation(224, colour=ALL["colour"]), random_images(8, 3, 224, 224)
    uniform, threads, found = (
        torch.rand(8, WIDTH, generator=torch.Generator().manual_seed(1)),
        torch.get_num_threads(),
        [],
    )
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(colours(image, uniform))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
