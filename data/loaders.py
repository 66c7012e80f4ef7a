"""Batches: which samples, in which order.

A batch is a dict:
    image     (B, 3, H, W) float32    normalised for the image branch
    sequence  (B, T, F) float32       T is the longest of the batch; zeros after each sequence's end
    length    (B,) int64              frames of each sequence, 1 to T
    present   (B, 2) bool             whether the sample has its image, its sequence
    label     (B,) int64
    index     (B,) int64              the sample's place in its split

`present` and `index` are on the CPU, the others on the model's device.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from app.messages import killed_worker
from app.randomness import stream
from data.split import ON_CPU, Batch, Split

REAL_FRAMES = 0.9  # share of a batch's frames, where lengths are brought together
MOST_WORKERS = 8  # unless the config says more

_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends


class EpochBatches(Sampler):
    """Yields (epoch, indices) for each batch; the data set receives both, and so needs no state of its own.

    With `shuffle`, the order is drawn anew from (seed, epoch). Batch sizes differ by one at most, so a small
    remainder never reaches a BatchNorm.

    Args:
        labels: (N,), to draw N samples with replacement, each class that has samples equally likely; None: to take
            each sample once.
        lengths: (N,), to bring samples of like length together: the order is cut into pools, each is sorted by length,
            and the batches that then come of it are put in an order drawn from (seed, epoch). A pool has as many
            batches, 1, 2, 4, ... or all, as it takes for REAL_FRAMES of the frames of all batches to be no padding.
            None: not to.
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
        lengths: torch.Tensor | None = None,
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
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        order = self._order(self.epoch) if self.kept is None else self._order_of_kept()
        if not self.num_batches:
            return
        batches = order.tensor_split(self.num_batches)
        for indices in batches if self.lengths is None else self._by_length(batches):
            yield self.epoch, indices

    def _by_length(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        order, sizes, per_pool = torch.cat(batches), [len(batch) for batch in batches], 1
        batch_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        while self._real_frames(batches) < REAL_FRAMES and per_pool < len(sizes):
            per_pool *= 2
            # By pool, in it by length, and samples of one length as they were.
            place = np.lexsort((self.lengths[order].numpy(), (batch_of // per_pool).numpy()))
            batches = order[torch.from_numpy(place)].split(sizes)
        if per_pool == 1:
            return batches
        shuffled = torch.randperm(len(sizes), generator=stream("order of batches", self.seed, self.epoch))
        return [batches[i] for i in shuffled.tolist()]

    def _real_frames(self, batches: Sequence[torch.Tensor]) -> float:
        lengths = [self.lengths[batch] for batch in batches]
        return sum(int(of.sum()) for of in lengths) / sum(len(of) * int(of.max()) for of in lengths)

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
    dataset: Split,
    batch_size: int,
    *,
    device: torch.device,
    on_device: bool = False,
    workers: int | None = 0,
    shuffle: bool = False,
    class_balanced: bool = False,
    limit_batches: int | None = None,
    seed: int = 0,
) -> "Batches":
    """
    Args:
        on_device, workers: see Batches; None workers: one for each core, 8 at most, if the data set says `read_ahead`,
            else 0.
        shuffle, class_balanced, limit_batches: how the samples are ordered or drawn; see EpochBatches. The lengths of
            the data set count where it is shuffled.
    """
    if workers is None:
        workers = min(possible_workers(), MOST_WORKERS) if dataset.read_ahead else 0
    labels, lengths = dataset.labels if class_balanced else None, dataset.lengths if shuffle else None
    order = {"shuffle": shuffle, "labels": labels, "lengths": lengths, "limit_batches": limit_batches, "seed": seed}
    sampler = EpochBatches(len(dataset), batch_size, **order)
    return Batches(dataset, sampler, device, on_device=on_device, workers=workers)


class Batches:
    """The batches of a split, on the device. Set `sampler.epoch` before each epoch.

    Args:
        on_device: whether their second part is computed there (see data/split.py); else where the first is.
        workers: processes that make them ahead; 0: none. The data set must be such that a forked process may read it.
    """

    def __init__(
        self, dataset: Split, sampler: EpochBatches, device: torch.device, *, on_device: bool = False, workers: int = 0
    ):
        self.dataset, self.sampler, self.device, self.on_device = dataset, sampler, device, on_device
        made = _Made(dataset, finished=not on_device)
        # Those of the training split live on between its epochs.
        processes = {"num_workers": workers, "persistent_workers": workers > 0 and sampler.shuffle}
        processes |= {"worker_init_fn": end_with_parent}
        pin_memory = device.type == "cuda"
        self.loader = DataLoader(made, sampler=sampler, batch_size=None, pin_memory=pin_memory, **processes)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._on_device, self._made())

    def _made(self) -> Iterator[Batch]:
        """Raises OSError for a sample that cannot be read, RuntimeError where a worker was killed."""
        try:
            for batch in _started(self.loader):
                if isinstance(batch, str):
                    raise OSError(batch)
                yield batch
        except RuntimeError as error:
            if text := killed_worker(error):
                raise RuntimeError(text) from None
            if str(error).startswith("Caught "):  # in a process, whose traceback follows
                raise RuntimeError(str(error).splitlines()[-1]) from error
            raise

    def _on_device(self, batch: Batch) -> Batch:
        batch = to_device(batch, self.device)
        return self.dataset.finish(batch) if self.on_device else batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All but what is asked for on the CPU, such as `present`, by which the rows of a branch are chosen."""
    return {
        name: tensor if name.startswith(ON_CPU) else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def possible_workers() -> int:
    """Processes that can run at once: the cores that this one may use; 0 where none can be led."""
    try:
        multiprocessing.Semaphore()
    except (ImportError, OSError):  # as where /dev/shm is full or missing
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def end_with_parent(worker: int) -> None:
    """DataLoader's workers look for their parent every 5 s, and until then a run that was killed would stay locked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends this one
    sys.excepthook = _report_what_concerns_the_run


def _report_what_concerns_the_run(kind: type[BaseException], error: BaseException, traceback) -> None:
    """A thread that hands tensors over finds its receiver gone where a run ends at Ctrl-C."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _started(loader: DataLoader) -> Iterator:
    """iter(loader). A Ctrl-C while its processes are forked is heard afterwards: Python drops what is raised there."""
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    heard = []
    before = signal.signal(signal.SIGINT, lambda *call: heard.append(call)) or signal.SIG_DFL
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


class _Made(Dataset):
    """What a process that makes batches runs. An OSError becomes its text, since a worker's would be a traceback."""

    def __init__(self, dataset: Split, *, finished: bool):
        self.dataset, self.finished = dataset, finished

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, epoch_and_indices: tuple[int, torch.Tensor]) -> Batch | str:
        try:
            return self.dataset[epoch_and_indices] if self.finished else self.dataset.gather(*epoch_and_indices)
        except OSError as error:
            return str(error)
