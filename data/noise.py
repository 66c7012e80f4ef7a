"""Samples of a split with noise on what its source gives, to see what a model makes of it."""

from collections.abc import Sequence

import torch

from app.randomness import stream
from data.split import Batch, PreparedSplit, Split


class Noisy(Split):
    """The samples of `split` with normal noise: on the images as they are stored, before they are resized and
    normalised, and on the normalised features, before deltas are made of them.

    The noise of a sample comes from (seed, sample) and from the size in which its image and sequence are gathered
    (small images have data.image_size where a batch has several sizes). With a larger deviation it is the same, larger.

    Args:
        image: deviation of the noise on each channel of a pixel; 1 is the step from black to white.
        sequence: deviation of the noise on each feature, in that feature's deviations.
    """

    def __init__(self, split: PreparedSplit, *, image: float = 0.0, sequence: float = 0.0, seed: int = 0):
        self.split, self.image, self.sequence, self.seed = split, image, sequence, seed
        self.labels, self.read_ahead = split.labels, split.read_ahead

    def __len__(self) -> int:
        return len(self.split)

    def cells(self, index: int) -> dict[str, str]:
        return self.split.cells(index)

    def gather(self, epoch: int, indices: torch.Tensor) -> Batch:
        batch = self.split.gather(epoch, indices)
        if self.image:
            size = batch["image"].shape[1:]
            batch["noise_image"] = torch.stack([self._draw("image", i, [size])[0] for i in indices.tolist()])
        if self.sequence:
            frames, features = batch["sequence"].shape[1:]
            noise = batch["sequence"].new_zeros(len(batch["sequence"]), frames, features)
            of_samples = batch["length"].split(batch.get("windows", torch.ones_like(indices)).tolist())
            sizes = ([(length, features) for length in of_sample.tolist()] for of_sample in of_samples)
            drawn = (self._draw("sequence", i, of) for i, of in zip(indices.tolist(), sizes, strict=True))
            for row, values in zip(noise, (values for of_sample in drawn for values in of_sample), strict=True):
                row[: len(values)] = values
            batch["noise_sequence"] = noise
        return batch

    def finish(self, batch: Batch) -> Batch:
        noise = {name: batch.pop(name) for name in ("noise_image", "noise_sequence") if name in batch}
        batch = self.split.prepare.begin(batch)
        if "noise_image" in noise:
            batch["image"] = batch["image"] + self.image * noise["noise_image"]
        if "noise_sequence" in noise:
            batch["sequence"] = batch["sequence"] + self.sequence * noise["noise_sequence"]
        return self.split.prepare.end(batch)

    def _draw(self, kind: str, index: int, sizes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        generator = stream("noise to see through", kind, self.seed, index)
        return [torch.randn(size, generator=generator) for size in sizes]
