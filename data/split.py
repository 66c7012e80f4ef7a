"""One split of a data source."""

import numpy as np
import torch
from torch.utils.data import Dataset

from data.transforms import Preparation

Batch = dict[str, torch.Tensor]


# What is on the CPU although the batch is on a GPU: asking for it never waits.
ON_CPU = ("present", "index", "draws_")  # beginnings of names


class Split(Dataset):
    """Gives a whole batch for (epoch, indices): the same samples in whatever batch, order or process.

    A batch is made in two parts, so that the second can run on a GPU. A subclass has `labels`, `__len__`, `gather`,
    and, where there is anything to compute, `finish`.
    """

    labels: torch.Tensor  # (N,) int64
    lengths: torch.Tensor | None = None  # (N,) frames, where an epoch of training is to bring like lengths together
    read_ahead = False  # whether a batch waits for files, so that other processes should make it meanwhile

    def __getitem__(self, epoch_and_indices: tuple[int, torch.Tensor]) -> Batch:
        return self.finish(self.gather(*epoch_and_indices))

    def gather(self, epoch: int, indices: torch.Tensor) -> Batch:
        """What is read and drawn, on the CPU. indices: (B,) int64."""
        raise NotImplementedError

    def finish(self, batch: Batch) -> Batch:
        """The batch as data/loaders.py says, on the device where the gathered one is. Draws nothing."""
        return batch

    def cells(self, index: int) -> dict[str, str]:
        """What the source calls that sample: texts by column, for predictions.csv."""
        return {}

    def recording(self, index: int) -> tuple[np.ndarray, int] | None:
        """What that sample's sequence was made of, where it was a recording: (samples,) float32, and their rate in
        Hz."""
        return None


class PreparedSplit(Split):
    """A split whose arithmetic is a Preparation, and whose samples may be varied (see data/augmentation/augmented.py).

    Attributes:
        present: (N, 2) bool, whether each sample has its image, its sequence.
        max_length: frames of the longest sequence that may come of it; None: no limit.
    """

    prepare: Preparation
    present: torch.Tensor
    max_length: int | None = None

    def finish(self, batch: Batch) -> Batch:
        return self.prepare(batch)
