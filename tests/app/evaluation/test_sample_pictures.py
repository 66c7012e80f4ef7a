import dataclasses

import numpy as np
import pytest
import torch

from app.evaluation.predictions import Predictions
from app.evaluation.sample_pictures import draw_confusion, draw_samples, draw_table
from app.training.objective import BRANCHES

RIGHT, WRONG, NOTHING = (0, 114, 178), (213, 94, 0), (217, 217, 217)


@pytest.fixture
def predictions():
    """Three samples: right, wrong, right; the second has no image, the third no sequence."""
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    present = torch.tensor([[1, 1], [0, 1], [1, 0]]).bool()
    names = ["cat", "a very long name that no card has room for"]
    own = dict.fromkeys(BRANCHES, logits)
    return Predictions(names, torch.arange(3), torch.tensor([0, 1, 1]), present, logits, own)


def samples_with(features, frames=5):
    sequence = torch.linspace(-1, 1, 3 * frames * features).reshape(3, frames, features)
    image = torch.zeros(3, 3, 8, 8)
    image[:, 1] = 1.0  # green
    return {"image": image, "sequence": sequence, "length": torch.tensor([frames, 2, 1])}


def colors(picture):
    return {tuple(color) for color in np.array(picture).reshape(-1, 3).tolist()}


def cards(picture, size):
    """Each a third of the height."""
    height = picture.height // size
    return [picture.crop((0, i * height, picture.width, (i + 1) * height)) for i in range(size)]


@pytest.mark.parametrize("features", [1, 8, 9, 40])
def test_a_card_shows_both_inputs_or_that_there_is_none(predictions, features):
    first, second, third = cards(draw_samples(samples_with(features), predictions), 3)
    green, words = (0, 255, 0), (0, 0, 350, 17)  # a line of text; lines of features have its colours too
    assert RIGHT in colors(first.crop(words)) and WRONG not in colors(first.crop(words)) and green in colors(first)
    assert WRONG in colors(second.crop(words)) and green not in colors(second) and NOTHING in colors(second)
    assert green in colors(third) and NOTHING in colors(third)


@pytest.mark.parametrize(("features", "drawn"), [(8, "lines"), (9, "heat map")])
def test_few_features_are_lines_and_many_a_heat_map(predictions, features, drawn):
    first, *_ = cards(draw_samples(samples_with(features), predictions), 3)
    right_half = first.crop((first.width // 2, 50, first.width - 10, first.height - 20))
    white = np.mean((np.array(right_half) == 255).all(2))
    assert (white > 0.3) == (drawn == "lines")


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_model_of_one_input_shows_one(predictions, branch):
    alone = dataclasses.replace(predictions, unimodal_logits={branch: predictions.logits})
    picture = draw_samples(samples_with(12), alone, columns=2)
    assert ((0, 255, 0) in colors(picture)) == (branch == "image_branch")
    assert picture.size[0] == 2 * 350


def test_numbers_that_are_not_finite_are_drawn_too(predictions):
    broken = dataclasses.replace(predictions, logits=predictions.logits * float("nan"))
    assert draw_samples(samples_with(12), broken).size[0] == 350
    unknown = dataclasses.replace(predictions, label=torch.full((3,), -1))
    assert WRONG not in colors(draw_samples(samples_with(12), unknown))


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 500])
def test_a_confusion_matrix_of_any_number_of_classes(classes):
    counts = torch.eye(classes, dtype=torch.int64) * 3
    picture = draw_confusion(counts, [f"class {i}" for i in range(classes)])
    assert max(picture.size) < 900
    dark = (8, 48, 107)  # all of a class
    assert dark in colors(picture) and draw_confusion(counts * 0, ["a"] * classes).size[0] > 0


def test_a_table_is_as_wide_as_tensorboard_shows_it_or_as_it_must_be():
    row = {"step": "462", "group": "temporal_branch", "lr": "0.006 → 0.0018"}
    table = draw_table([row] * 3)
    assert table.size == (350, 4 * 15 + 8)
    inked = (np.array(table) < 128).all(2)
    lines = [inked[4 + i * 15 : 18 + i * 15] for i in range(4)]
    assert np.array_equal(lines[1], lines[2]) and lines[1].any() and not np.array_equal(lines[0], lines[1])
    assert not inked[:, -3:].any() and draw_table([row | {"group": "x" * 60}]).width > 350


def test_of_a_long_name_without_spaces_the_beginning_is_shown(predictions):
    names = ["chamaeleo_calyptratus", "trioceros_melleri_of_the_usambara"]
    a, b = (draw_confusion(torch.eye(2).long(), order) for order in (names, names[::-1]))
    assert a.tobytes() != b.tobytes()
    a, b = (
        draw_samples(samples_with(3), dataclasses.replace(predictions, class_names=order))
        for order in (names, names[::-1])
    )
    assert a.tobytes() != b.tobytes()
