"""What the rest of the program must know of the data, and what every source has in the config."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pydantic import Field

from app.section import Section
from data.augmentation.config import AugmentationConfig, stored_size

# In the order of `present` in a batch.
MODALITIES = ("image", "sequence")
SPLITS = ("train", "val", "test")


class DataConfig(Section):
    source: str = Field(description="where the data come from")
    batch_size: int = Field(ge=2, description="samples; batches of an epoch differ by one sample at most")
    sampler: Literal["shuffle", "class_balanced"] = Field(
        "shuffle",
        description="an epoch of training; shuffle: each sample once; class_balanced: as many samples, drawn with "
        "replacement, each class equally likely (which is in place of loss.class_weights)",
    )
    image_size: int = Field(ge=8, description="pixels of an edge, as the CNN reads it")
    on_device: Literal["auto", "always", "never"] = Field(
        "auto",
        description="where samples are resized, augmented and normalised, and get their deltas: always: on the device "
        "of the model, after the copy; never: where they are read; auto: on the device if it is a CUDA GPU",
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="processes that make batches ahead; 0: the training process makes them; null: 0, but one for "
        "each core, 8 at most, for files that do not fit in memory or are decoded anew for each batch",
    )
    augmentation: AugmentationConfig = Field(
        AugmentationConfig(), description="how training samples are varied; never those of validation and test"
    )

    @property
    def stored_image_size(self) -> int:
        """Pixels of an edge that images keep until they are cropped."""
        return stored_size(self.augmentation.image, self.image_size)

    def reading(self) -> dict[str, Any]:
        """By key, what decides how a file becomes the values that a DataSpec measures."""
        return {}

    def adds(self, modalities: Sequence[str]) -> dict[str, Any]:
        """By key, what is added to these inputs of validation and test: a test of other values is another test."""
        return {}


@dataclass(frozen=True)
class DataSpec:
    """Comes from a source, goes into every checkpoint, and prepares the same data again.

    Args:
        class_names: by label, 0 first.
        num_features: F of the sequences (B, T, F); 0 where none are read.
        normalisation: {"mean": [...], "std": [...]} of each feature that the source stores, over the frames of its
            training split. There may be fewer of them than F: a source may add features that it derives (deltas).
        class_counts: training rows of each class.
        absent: training rows without their image, without their sequence.
        rows: by split, what tells its rows from others: their number and a digest, as text.
        feature_names: of the stored features, where the data name them.
        image_range: the values of black and white in images of 16 bits or floating point; None where the config does
            not say them and the training split has no such images.
        image_depth: numpy's name for the type of the training images, which others must share; None where the config
            says image_range, for then they may have any.
    """

    class_names: tuple[str, ...]
    num_features: int
    normalisation: dict[str, list[float]]
    class_counts: tuple[int, ...]
    absent: tuple[int, int]
    rows: dict[str, str]
    feature_names: tuple[str, ...] = ()
    image_range: tuple[float, float] | None = None
    image_depth: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSpec":
        tuples = [field.name for field in fields(cls) if "tuple" in str(field.type)]
        return cls(**{n: tuple(v) if n in tuples and v is not None else v for n, v in values.items()})

    def other_rows(self, saved: "DataSpec", splits: Sequence[str] = SPLITS) -> Iterator[str]:
        """A line for each split whose rows are not those of `saved`."""
        for split in splits:
            if self.rows[split] != saved.rows[split]:
                yield f"the rows of {split}: {saved.rows[split]} -> {self.rows[split]}"
