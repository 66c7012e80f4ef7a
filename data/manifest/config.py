"""The section `data` for a source that is a table of files."""

from typing import Any, Literal

from pydantic import Field, model_validator

from app.section import Section
from data.files.images import ImageConfig
from data.files.sequences import AudioConfig, SequenceConfig
from data.spec import DataConfig


class FractionsConfig(Section):
    train: float = Field(0.7, gt=0, description="of the rows (of their groups, where there are) that train")
    val: float = Field(0.15, gt=0, description="of those that validate")
    test: float = Field(0.15, gt=0, description="of those that are kept for the test")

    @model_validator(mode="after")
    def _whole(self) -> "FractionsConfig":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train {self.train:g} + val {self.val:g} + test {self.test:g} is {total:g}, must be 1")
        return self


class ManifestConfig(DataConfig):
    source: Literal["manifest"] = Field(description="a table of image and sequence files, or a folder of them")
    manifest: str = Field(description="a .csv, .tsv or .jsonl file, or a folder <split>/<class>/ of files")
    root: str | None = Field(
        None, description="folder that the paths start from, and that no file may leave; null: that of the manifest"
    )
    columns: dict[str, str] = Field(
        {}, description="role (image, sequence, label, split, group, id) to column, where a name is not a usual one"
    )
    fractions: FractionsConfig = Field(
        FractionsConfig(), description="of the splits, where the table has no column that says them"
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="skip: rows that cannot be used are left out, and listed in the run's folder"
    )
    skip_limit: float = Field(0.01, ge=0, le=1, description="largest share of the rows that is left out")
    image: ImageConfig = Field(ImageConfig(), description="how images are read")
    sequence: SequenceConfig = Field(SequenceConfig(), description="how sequences are read")
    audio: AudioConfig = Field(AudioConfig(), description="features of a recording")
    max_length: int | None = Field(None, ge=2, description="frames of the longest sequence that the model reads")
    too_long: Literal["error", "truncate", "window"] = Field(
        "error",
        description="a longer sequence is an error, loses what is later, or is read in windows of max_length: in "
        "training one, drawn in each epoch",
    )
    windows: Literal["first", "mean"] = Field(
        "first", description="outside training: the first window, or the mean of the logits over all windows"
    )

    length_buckets: bool = Field(
        True,
        description="an epoch of training brings sequences of like length together: the drawn order is cut into pools "
        "of as many batches as it takes for 0.9 of all frames to be no padding, each pool is sorted by length, and the "
        "batches are put in a drawn order; where length tells the class, a batch then has fewer classes",
    )
    cache: Literal["folder", "memory", "none"] = Field(
        "folder",
        description="folder: decoded files are kept in cache_folder, where later runs find them; memory: each is "
        "decoded when it is first read, and kept in memory; none: each is decoded again for each batch",
    )
    cache_folder: str | None = Field(
        None, description="folder of decoded files; null: $DUET_CACHE, else the user's cache folder"
    )

    def reading(self) -> dict[str, Any]:
        deep = {"data.image.value_range": self.image.value_range}
        return {"data.sequence": self.sequence, "data.audio": self.audio} | deep
