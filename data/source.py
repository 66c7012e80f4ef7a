"""Where the data come from. A new source is one class (see Source) and one line in SOURCES."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

from torch.utils.data import Dataset

from app.messages import nearest
from data.digits import DataConfig, Digits
from data.spec import DataSpec


class Source(Protocol):
    """A labelled data set of images and sequences, already split."""

    spec: DataSpec

    def __init__(self, config: DataConfig, saved: DataSpec | None):
        """
        Args:
            saved: that of a checkpoint, whose normalisation is to be used; None: to be measured.

        Raises FileNotFoundError or ValueError, in words for the user, if the data cannot be had.
        """

    def splits(self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]) -> dict[str, Dataset]:
        """The splits "train", "val" and "test", each of which gives a whole batch (see data/loaders.py) for
        (epoch, indices).

        Args:
            seed: of what is drawn anew in each epoch of training.
            image_mean, image_std: of red, green and blue, as the image network expects them.
        """


SOURCES: dict[str, type[Source]] = {"digits": Digits}


def make_source(config: DataConfig, saved: DataSpec | None = None) -> Source:
    """The source that the config names.

    Args:
        saved: that of a checkpoint, which the source must agree with.

    Raises ValueError for an unknown or another source, and what the source itself raises.
    """
    if config.source not in SOURCES:
        raise ValueError(f"data.source: unknown source '{config.source}'; {nearest(config.source, list(SOURCES))}")
    source = SOURCES[config.source](config, saved)
    for field in fields(DataSpec) if saved is not None else ():
        found, expected = getattr(source.spec, field.name), getattr(saved, field.name)
        if found != expected:
            raise ValueError(
                f"data.source: {config.source} has {field.name} {found}, the checkpoint's data have {expected}; "
                "give the data that it was trained with"
            )
    return source
