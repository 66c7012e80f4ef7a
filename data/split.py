"""One split of a data source."""

import torch
from torch.utils.data import Dataset

Batch = dict[str, torch.Tensor]


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
