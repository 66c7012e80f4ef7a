import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from app.evaluation.figures import (
    COLORS,
    LINES,
    as_png,
    classes_of,
    confusion_figure,
    pixels_of,
    samples_figure,
    text_figure,
    titles_of,
)
from app.evaluation.predictions import Predictions
from app.training.objective import BRANCHES

NAMES = ["cat", "a very long name of a dog", "$x$"]


@pytest.fixture
def before() -> dict[str, torch.Tensor]:
    """The second of three samples has no image, the third no sequence."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(3, 3, 8, 8, generator=generator),
        "sequence": torch.randn(3, 6, LINES + 1, generator=generator),
        "length": torch.tensor([6, 4, 1]),
        "present": torch.tensor([[True, True], [False, True], [True, False]]),
        "label": torch.tensor([0, 1, 2]),
    }


@pytest.fixture
def predictions(before) -> Predictions:
    """Right, wrong, right."""
    logits = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    own = dict.fromkeys(BRANCHES, logits)
    return Predictions(NAMES, torch.arange(3), before["label"], before["present"], logits, own)


def grid_of(figure, rows):
    return np.array(figure.axes[: len(figure.axes) // rows * rows]).reshape(rows, -1)


def test_each_sample_is_a_card_with_its_title_and_what_it_is_in_each_batch(before):
    after = before | {"image": 1 - before["image"], "sequence": -before["sequence"][:, :5]}
    after["length"] = torch.tensor([5, 4, 1])
    grid = grid_of(samples_figure(NAMES, before, after), 3)
    assert [axes.get_title(loc="left") for axes in grid[:, 0]] == NAMES
    shown = [[axes.images[0].get_array() if axes.images else axes.texts[0].get_text() for axes in row] for row in grid]
    assert np.array_equal(shown[0][0], before["image"][0].permute(1, 2, 0))
    assert np.array_equal(shown[0][1], 1 - before["image"][0].permute(1, 2, 0))
    assert np.array_equal(shown[0][2], before["sequence"][0].T)  # features up: see below
    assert np.array_equal(shown[0][3], -before["sequence"][0, :5].T)
    assert np.array_equal(shown[1][2], before["sequence"][1, :4].T)
    assert shown[1][:2] == ["none", "none"] and shown[2][2:] == ["none", "none"]
    heat_maps = [axes.images[0] for row in (0, 1) for axes in grid[row, 2:]]
    assert all(picture.origin == "lower" for picture in heat_maps)
    (scale,) = {picture.get_clim() for picture in heat_maps}
    assert scale[0] == -scale[1] and 1 < scale[1] < 4
    assert [grid[0, column].get_xlim() for column in (2, 3)] == [(0, 6), (0, 6)]  # frames


@pytest.mark.parametrize("features", [1, LINES])
def test_few_features_are_lines(before, features):
    before["sequence"] = before["sequence"][..., :features]
    first = grid_of(samples_figure(NAMES, before), 3)[0]
    assert len(first[1].lines) == features and not first[1].images


@pytest.mark.parametrize("column", [0, 1])
def test_a_modality_that_no_sample_has_is_left_out(before, column):
    before["present"][:, 1 - column] = False
    assert len(samples_figure(NAMES, before, before).axes) == 6
    before["present"][:] = False
    assert [axes.texts[0].get_text() for axes in samples_figure(NAMES, before).axes] == ["none"] * 6


def test_cards_side_by_side_leave_the_rest_empty(before):
    figure = samples_figure(NAMES, before, columns=2)
    titles = [[axes.get_title(loc="left") for axes in row[::2]] for row in grid_of(figure, 2)]
    assert titles == [NAMES[:2], [NAMES[2], ""]] and not figure.axes[-1].axison


def test_a_title_says_what_is_right(predictions):
    titles, colors = titles_of(predictions)
    assert titles[0] == "✓ is cat, predicted cat (91 %)\nalone: image cat (91 %), sequence cat (91 %)"
    assert titles[1] == "✗ is a very long na…, predicted cat (91 %)\nalone: image none, sequence cat (91 %)"
    assert titles[2] == "✓ is $x$, predicted $x$ (99.9 %)\nalone: image $x$ (99.9 %), sequence none"
    assert colors == [COLORS[0], COLORS[1], COLORS[0]]
    unknown = titles_of(dataclasses.replace(predictions, label=torch.full((3,), -1)))
    assert unknown[0][1].startswith("class unknown, predicted cat") and set(unknown[1]) == {COLORS[0]}


def test_numbers_that_are_not_finite_are_drawn_too(before, predictions):
    titles, colors = titles_of(dataclasses.replace(predictions, logits=predictions.logits * float("nan")))
    figure = samples_figure(titles, before, colors=colors)
    assert pixels_of(figure).shape == (390, 350, 3)  # as wide as TensorBoard shows a picture
    assert to_hex(figure.axes[0]._left_title.get_color()).upper() == colors[0]


def test_a_mixed_sample_is_named_by_both_classes(before):
    assert classes_of(before, NAMES) == NAMES
    after = before | {"partner_label": torch.tensor([1, 1, 0]), "share": torch.tensor([0.25, 1.0, 0.5])}
    both = "100% a very long name of a dog, 0% a very long name of a dog"
    assert classes_of(after, NAMES) == ["25% cat, 75% a very long name of a dog", both, "50% $x$, 50% cat"]


@pytest.mark.filterwarnings("error")
def test_text_has_room_and_letters_that_the_font_lacks_are_no_warning():
    pixels = pixels_of(text_figure("step  group\n----\n   1  日本\n" + "x" * 60))
    inked = (pixels < 128).all(2)
    assert inked.any() and not inked[:, -3:].any() and not inked[-3:].any()
    assert as_png(text_figure("a")).startswith(b"\x89PNG")


def test_long_names_leave_the_confusion_matrix_its_place():
    figure = confusion_figure(torch.eye(3).long(), ["x" * 150, "b" * 30, "c"], "test")
    pixels_of(figure)  # drawn, so that the layout is made
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x" * 29 + "…", "b" * 30, "c"]
    assert min(axes.get_position().size) > 0.4


@pytest.mark.parametrize("classes", [1, 2, 20, 60, 61, 500])
def test_a_confusion_matrix_of_any_number_of_classes(classes):
    counts = torch.eye(classes, dtype=torch.int64) * 3
    figure = confusion_figure(counts, [f"class {i}" for i in range(classes)], "test")
    pixels = pixels_of(figure, dpi=60)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
    assert len(boxes) == (classes if classes <= 60 else 0)
    assert max(pixels.shape) < 1000 and (pixels == (8, 48, 107)).all(2).any()  # dark: all of a class
