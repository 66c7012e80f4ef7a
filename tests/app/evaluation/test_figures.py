import numpy as np
import pytest
import torch
from PIL import Image

from app.evaluation.figures import augmentation_figure, confusion_figure, pixels_of

NAMES = ["cat", "a very long name of a dog", "$x$"]


@pytest.fixture
def before() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randn(3, 6, 4, generator=generator)
    sequence[1, 4:] = 0
    sequence[2] = 0
    return {
        "image": torch.rand(3, 3, 8, 8, generator=generator),
        "sequence": sequence,
        "length": torch.tensor([6, 4, 1]),
        "present": torch.tensor([[True, True], [False, True], [True, False]]),
        "label": torch.tensor([0, 1, 2]),
    }


def test_each_sample_is_a_row_with_its_class_and_what_it_was_before_and_after(before):
    after = before | {"image": 1 - before["image"], "sequence": -before["sequence"][:, :5]}
    after["length"] = torch.tensor([5, 4, 1])
    figure = augmentation_figure(before, after, NAMES)
    grid = np.array(figure.axes[:12]).reshape(3, 4)
    titles = ["image before", "image after", "sequence before", "sequence after"]
    assert [axes.get_title() for axes in grid[0]] == titles
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["cat", "a very long\nname of a dog", "$x$"]
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


def test_a_mixed_sample_is_named_by_both_classes(before):
    after = before | {"partner_label": torch.tensor([1, 1, 0]), "share": torch.tensor([0.25, 1.0, 0.5])}
    labels = [figure.get_ylabel() for figure in augmentation_figure(before, after, NAMES).axes[:12:4]]
    assert labels == [
        "25% cat\n75% a very long\nname of a dog",
        "100% a very long\nname of a dog\n0% a very long\nname of a dog",
        "50% $x$\n50% cat",
    ]


@pytest.mark.parametrize(("column", "kind"), [(0, "image"), (1, "sequence")])
def test_a_modality_that_no_sample_has_is_left_out(before, column, kind):
    before["present"][:, 1 - column] = False
    figure = augmentation_figure(before, before, NAMES)
    assert [axes.get_title() for axes in figure.axes[:2]] == [f"{kind} before", f"{kind} after"]
    assert len(figure.axes) == 6 + column  # with the colour scale of sequences


def test_its_pixels_are_those_of_the_file(before, tmp_path):
    pixels = pixels_of(augmentation_figure(before, before, NAMES))
    augmentation_figure(before, before, NAMES).savefig(tmp_path / "samples.png")
    saved = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
    assert pixels.dtype == torch.float32 and pixels.shape == (3, *saved.shape[:2])
    assert np.array_equal((pixels * 255).round().byte().permute(1, 2, 0), saved)


def test_long_names_leave_the_confusion_matrix_its_place():
    figure = confusion_figure(torch.eye(3).long(), ["x" * 150, "b" * 30, "c"], "test")
    pixels_of(figure)  # drawn, so that the layout is made
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x" * 29 + "…", "b" * 30, "c"]
    assert min(axes.get_position().size) > 0.4
