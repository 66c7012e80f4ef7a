"""What the rest of the program must know of the data."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSpec:
    """Comes from a source, goes into every checkpoint, and prepares the same data again.

    Args:
        class_names: by label, 0 first.
        num_features: F of the sequences (B, T, F).
        normalisation: {"mean": [...], "std": [...]} of each feature that the source stores, over the frames of its
            training split. There may be fewer of them than F: a source may add features that it derives (deltas).
    """

    class_names: tuple[str, ...]
    num_features: int
    normalisation: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "class_names": list(self.class_names),
            "num_features": self.num_features,
            "normalisation": {name: list(values) for name, values in self.normalisation.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSpec":
        return cls(**{**values, "class_names": tuple(values["class_names"])})
