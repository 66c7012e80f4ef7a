"""Where the data come from. A new source is one class (see Source) and one line in SOURCES."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

from pydantic import Field

from data.digits import Digits
from data.manifest.config import ManifestConfig
from data.manifest.source import Manifest, NewRows
from data.spec import MODALITIES, DataConfig, DataSpec
from data.split import Split


class Source(Protocol):
    """A labelled data set of images and sequences, already split."""

    Config: ClassVar[type[DataConfig]]  # the section `data`, with its own name as the Literal of `source`
    spec: DataSpec
    skipped: list[dict[str, str]]  # rows that are left out: row, column, value, problem
    notes: list[str]  # lines to print before training

    def __init__(self, config: DataConfig, saved: DataSpec | None, modalities: Sequence[str]):
        """
        Args:
            saved: that of a checkpoint, whose normalisation is to be used; None: to be measured.
            modalities: of MODALITIES, those that the model reads.

        Raises FileNotFoundError or ValueError, in words for the user, if the data cannot be had.
        """

    def fingerprint(self, split: str, modality: str | None) -> str:
        """What tells the rows of a split from others by their order, their labels and their inputs of that modality,
        which the model reads; None: by order and labels alone."""

    def splits(self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]) -> dict[str, Split]:
        """The splits "train", "val" and "test".

        Args:
            seed: of what is drawn anew in each epoch of training.
            image_mean, image_std: of red, green and blue, as the image network expects them.
        """


SOURCES: dict[str, type[Source]] = {"digits": Digits, "manifest": Manifest}
# What may stand in the section `data`, told apart by `source`.
Data = Annotated[reduce(or_, (source.Config for source in SOURCES.values())), Field(discriminator="source")]


def make_source(config: DataConfig, saved: DataSpec | None = None, modalities: Sequence[str] = MODALITIES) -> Source:
    """The source that the config names.

    Args:
        saved: that of a checkpoint, whose classes and number of features the source must have.
        modalities: of MODALITIES, those that the model reads.

    Raises ValueError for other data, and what the source itself raises.
    """
    source = SOURCES[config.source](config, saved, modalities)
    for name in ("class_names", "num_features") if saved is not None else ():
        found, expected = getattr(source.spec, name), getattr(saved, name)
        if found != expected:
            raise ValueError(
                f"data.source: {config.source} has {name} {found}, the checkpoint's data have {expected}; "
                "give the data that it was trained with"
            )
    return source


def make_new_rows(
    manifest: Path, config: DataConfig, saved: DataSpec, modalities: Sequence[str], root: Path | None = None
) -> NewRows:
    """Rows of another table, for a model that was trained with `config`. Raises what NewRows raises, and ValueError
    for a model that was not trained on files."""
    if not isinstance(config, ManifestConfig):
        raise ValueError(
            f"--manifest: the checkpoint was trained with data.source={config.source}, and says nothing of how files "
            "are read; give one that was trained with data.source=manifest"
        )
    return NewRows(manifest, config, saved, modalities, root)
