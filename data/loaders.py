"""Batches: which samples, in which order.

A batch is a dict:
    image     (B, 3, H, W) float32    normalised for the image branch
    sequence  (B, T, F) float32       T is the longest of the batch; zeros after each sequence's end
    length    (B,) int64              frames of each sequence, 1 to T
    present   (B, 2) bool             whether the sample has its image, its sequence
    label     (B,) int64
    index     (B,) int64              the sample's place in its split
"""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from app.randomness import stream


class EpochBatches(Sampler):
    """Yields (epoch, indices) for each batch; the data set receives both, and so needs no state of its own.

    With `shuffle`, the order is drawn anew from (seed, epoch). Batch sizes differ by one at most, so a small
    remainder never reaches a BatchNorm.

    Args:
        labels: (N,), to draw N samples with replacement, each class that has samples equally likely; None: to take
            each sample once.
        limit_batches: to take no more than that many, and these in every epoch: the first of epoch 0, which `shuffle`
            orders anew among themselves. None: to take all.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        labels: torch.Tensor | None = None,
        limit_batches: int | None = None,
    ):
        self.num_samples = num_samples
        # 1 / samples of its class: the chance of each sample, but for a factor that all share.
        self.chances = None if labels is None else labels.bincount().double().reciprocal()[labels]
        self.num_batches = -(-num_samples // batch_size)
        self.kept: int | None = None  # samples, where fewer than all
        if limit_batches is not None and limit_batches < self.num_batches:
            self.num_batches, self.kept = limit_batches, limit_batches * batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        order = self._order(self.epoch) if self.kept is None else self._order_of_kept()
        for indices in order.tensor_split(self.num_batches) if self.num_batches else ():
            yield self.epoch, indices

    def _order_of_kept(self) -> torch.Tensor:
        kept = self._order(0)[: self.kept]
        if not self.shuffle:
            return kept
        return kept[torch.randperm(self.kept, generator=stream("order of kept", self.seed, self.epoch))]

    def _order(self, epoch: int) -> torch.Tensor:
        if self.chances is not None:
            generator = stream("class balanced", self.seed, epoch)
            return torch.multinomial(self.chances, self.num_samples, replacement=True, generator=generator)
        if self.shuffle:
            return torch.randperm(self.num_samples, generator=stream("order", self.seed, epoch))
        return torch.arange(self.num_samples)


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    class_balanced: bool = False,
    limit_batches: int | None = None,
    seed: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader whose data set is asked for whole batches. Set `loader.sampler.epoch` before each epoch.

    No workers: the data is in memory, and handing it between processes was 5 to 7 times slower.

    Args:
        shuffle, class_balanced, limit_batches: how the samples are ordered or drawn; see EpochBatches.
    """
    order = {"shuffle": shuffle, "labels": dataset.labels if class_balanced else None, "limit_batches": limit_batches}
    sampler = EpochBatches(len(dataset), batch_size, seed=seed, **order)
    return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=0, pin_memory=pin_memory)
