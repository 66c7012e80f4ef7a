"""What checkpoints must have in common to be compared, or joined, row by row."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from app.commands.trained import Trained
from app.evaluation.predictions import INPUTS
from app.training.objective import BRANCHES

# Keys of `data` that choose the rows, which are compared themselves, or that each model may have for itself.
OF_NO_CONCERN = {"source", "manifest", "root", "columns", "fractions", "on_error", "skip_limit", "batch_size"}
OF_NO_CONCERN |= {"workers", "on_device", "sampler", "augmentation", "image_size", "redraw"}
OF_NO_CONCERN |= {"cache", "cache_folder", "length_buckets"}


def check_same_rows(option: str, first: Trained, other: Trained, rows: str) -> None:
    """Raises ValueError, which begins with the `option`, where the two have other classes or would predict other rows.

    Each model has digested what it reads only: what both read must be the same, noise that is added to it included, and
    where that is nothing, all that the table says of each row.
    """
    both = [INPUTS[branch] for branch in first.branches if branch in other.branches]
    of_first, of_other = (_facts(model, rows, both) for model in (first, other))
    for what, values in of_first.items():
        for a, b in zip_longest(values, of_other[what]):
            if a != b:
                raise ValueError(
                    f"{option}: {what} must be the same; {first.path} has {a}, {other.path} has {b}; give checkpoints "
                    "of the same data, and rows that each of them can read"
                )


def _facts(model: Trained, rows: str, inputs: list[str]) -> dict[str, list[Any]]:
    """By what they are of, in words."""
    of_rows, source = f"the rows of {'the table' if rows == 'new' else rows}", model.parts.source
    facts = {"the classes": model.class_names, f"the number of {of_rows}": [len(model.parts.splits[rows])]}
    facts[f"the order and labels of {of_rows}"] = [source.fingerprint(rows, None)]
    facts |= {f"{name}s of {of_rows}": [source.fingerprint(rows, name)] for name in inputs}
    facts |= {key: [value] for key, value in model.data_config.adds(inputs).items()}
    return facts if inputs else facts | {of_rows: model.cells(rows)}


def read_otherwise(first: Trained, other: Trained) -> Iterator[str]:
    """A line for each setting by which the two read the same rows otherwise, which each model may choose."""
    added = {key.removeprefix("data.") for key in first.data_config.adds([*INPUTS.values()])}
    a, b = (model.data_config.model_dump(exclude=OF_NO_CONCERN | added) for model in (first, other))
    for key, value in a.items():
        if value != b.get(key):
            yield (
                f"data.{key} is {value} in {first.path}, {b.get(key)} in {other.path}: each model reads the rows as "
                "its own config says"
            )


def smoothed(models: list[Trained]) -> Iterator[str]:
    """A line for each whose probabilities late fusion cannot join exactly."""
    for model in models:
        if smoothing := model.objective.label_smoothing:
            yield (
                f"{model.path} was trained with loss.label_smoothing={smoothing:g}: its probabilities are not those of "
                "the classes, so joining them is not exact"
            )


def check_late_fusion(image: Trained, sequence: Trained) -> None:
    """Raises ValueError for models that do not read one input each, in this order, or that learnt other shares of the
    classes. Their classes are the same."""
    for model, place, (branch, other) in ((image, "first", BRANCHES), (sequence, "second", BRANCHES[::-1])):
        if model.branches != [branch]:
            reads = " and ".join(f"{INPUTS[own]}s" for own in model.branches)
            raise ValueError(
                f"--late-fusion: {model.path} reads {reads}; the {place} checkpoint must be of a model that reads "
                f"{INPUTS[branch]}s only: give one that was trained with model.{other}=null"
            )
    for name, a, b in zip(image.class_names, image.prior.tolist(), sequence.prior.tolist(), strict=True):
        if abs(a - b) > 1e-6:
            raise ValueError(
                f"--late-fusion: the share of {name!r} in training must be the same; it was {a:.6f} in {image.path}, "
                f"{b:.6f} in {sequence.path}; train both on the same rows, with the same data.sampler and "
                "loss.class_weights"
            )
