"""Training samples of a split, varied anew in each epoch."""

import torch
from torch.nn.utils.rnn import pad_sequence

from app.randomness import Draws, stream
from data.augmentation.config import AugmentationConfig
from data.augmentation.images import ImageAugmentation
from data.augmentation.mixup import Partners, mix, share
from data.augmentation.sequences import SequenceAugmentation
from data.split import Batch, PreparedSplit, Split


class Augmented(Split):
    """The samples of `split`, whose own arithmetic is done around the effects: images are cropped, turned and so on
    before they are normalised, sequences after that and before deltas are made of them; mixup comes last.

    All numbers come from (seed, epoch, sample), so a sample drawn twice in an epoch is varied alike.

    Args:
        present: (N, M) bool, which modalities each sample has.
        image_size: pixels of an edge.
    """

    def __init__(self, split: PreparedSplit, config: AugmentationConfig, *, image_size: int, seed: int):
        self.split, self.seed = split, seed
        self.labels, self.lengths, self.read_ahead = split.labels, split.lengths, split.read_ahead
        self.images = ImageAugmentation(config.image, image_size)
        self.sequences = SequenceAugmentation(config.sequence, split.max_length)
        self.mixup, self.partners = config.mixup, Partners(split.present)
        widths = {"images": self.images.width, "sequences": self.sequences.width, "mixup": 2 if config.mixup else 0}
        self.draws = {
            part: Draws("augmentation of " + part, seed, num_samples=len(split), width=width)
            for part, width in widths.items()
        }

    def __len__(self) -> int:
        return len(self.split)

    def cells(self, index: int) -> dict[str, str]:
        return self.split.cells(index)

    def gather(self, epoch: int, indices: torch.Tensor) -> Batch:
        """With the numbers that `finish` needs, on the CPU: see data/split.py."""
        draws = {}
        if self.mixup:
            numbers = self.draws["mixup"](epoch, indices)
            draws["draws_share"] = share(numbers[:, 1], self.mixup.alpha)
            indices = torch.cat([indices, self.partners(numbers[:, 0], indices)])
        batch = self.split.gather(epoch, indices)
        draws["draws_images"] = self.draws["images"](epoch, indices)
        draws["draws_sequences"] = self.draws["sequences"](epoch, indices)
        draws["draws_length"] = batch["length"]
        if self.sequences.needs_noise:
            lengths = self.sequences.lengths(batch["length"], draws["draws_sequences"])
            batch["noise"] = self._noise(epoch, indices, lengths, batch["sequence"].shape[2])
        return batch | draws

    def finish(self, batch: Batch) -> Batch:
        draws = {name: batch[name] for name in batch if name.startswith("draws_") or name == "noise"}
        batch = self.split.prepare.begin({name: tensor for name, tensor in batch.items() if name not in draws})
        image = self.images(batch["image"], draws["draws_images"])
        sequence, length = self.sequences(
            batch["sequence"], draws["draws_length"], draws["draws_sequences"], draws.get("noise")
        )
        length = length.to(batch["length"].device, non_blocking=True)
        batch = self.split.prepare.end(batch | {"image": image, "sequence": sequence, "length": length})
        if self.mixup:
            batch = mix(batch | {"share": draws["draws_share"].to(image.device, non_blocking=True)})
        return batch

    def _noise(self, epoch: int, indices: torch.Tensor, lengths: torch.Tensor, num_features: int) -> torch.Tensor:
        """(B, T, F), normal with deviation 1; zeros after each end."""
        rows = zip(indices.tolist(), lengths.tolist(), strict=True)
        generators = ((stream("noise on sequences", self.seed, epoch, index), length) for index, length in rows)
        return pad_sequence([torch.randn(n, num_features, generator=g) for g, n in generators], batch_first=True)
