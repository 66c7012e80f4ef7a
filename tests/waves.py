"""A small data source, for tests of what holds for any source."""

import math
from functools import reduce
from operator import or_
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn.functional import interpolate

from app.commands import root_config
from app.randomness import stream
from data.source import SOURCES
from data.spec import DataConfig, DataSpec
from data.split import Split

CLASS_NAMES = ("slow", "fast", "faster")
WAVES = "data={source: waves, batch_size: 16, image_size: 32}"
SPLITS = {"train": range(0, 96), "val": range(96, 126), "test": range(126, 156)}


class WavesConfig(DataConfig):
    source: Literal["waves"] = Field(description="waves and stripes")


class Waves:
    """Five phases of a sine whose frequency is the class, with a picture of as many stripes; 3 to 12 frames."""

    Config = WavesConfig
    skipped, notes = [], []

    def __init__(self, config, saved=None, modalities=()):
        self.config = config
        self.label = torch.arange(156) % 3
        self.length = 3 + torch.arange(156) % 10
        generator = stream("waves")
        angle = (self.label[:, None] + 1) * torch.arange(12) * math.pi / 12  # (N, T)
        phase = torch.arange(5) * math.tau / 5
        waves = 40 * torch.sin(angle[:, :, None] + phase) + torch.randn(156, 12, 5, generator=generator)
        self.inside = (torch.arange(12) < self.length[:, None])[:, :, None]
        self.sequence = waves * self.inside
        frames = waves[SPLITS["train"]][self.inside[SPLITS["train"], :, 0]]
        measured = {"mean": frames.mean(0).tolist(), "std": frames.std(0).tolist()}
        self.spec = DataSpec(
            class_names=CLASS_NAMES,
            num_features=5,
            normalisation=saved.normalisation if saved else measured,
            class_counts=(32, 32, 32),
            absent=(0, 0),
            rows={split: f"{len(rows)} rows" for split, rows in SPLITS.items()},
        )

    def splits(self, *, seed, image_mean, image_std):
        mean, std = (torch.tensor(self.spec.normalisation[name]) for name in ("mean", "std"))
        sequence = (self.sequence - mean) / std * self.inside
        stripes = (torch.arange(8) * (self.label[:, None] + 1) // 4 % 2).float()[:, None, None, :].expand(-1, 3, 8, 8)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (image_mean, image_std))
        size = self.config.image_size
        return {
            split: Rows((interpolate(stripes, (size, size)) - mean) / std, sequence, self.length, self.label, rows)
            for split, rows in SPLITS.items()
        }


class Rows(Split):
    def __init__(self, image, sequence, length, label, rows):
        self.image, self.sequence, self.length, self.labels = (t[rows] for t in (image, sequence, length, label))

    def __len__(self):
        return len(self.labels)

    def gather(self, epoch, indices):
        length = self.length[indices]
        return {
            "image": self.image[indices],
            "sequence": self.sequence[indices, : int(length.max())],
            "length": length,
            "present": torch.ones(len(indices), 2, dtype=torch.bool),
            "label": self.labels[indices],
            "index": indices,
        }


def add_waves(monkeypatch):
    """A line in SOURCES; and what is made of SOURCES when the program starts is made again."""
    monkeypatch.setitem(SOURCES, "waves", Waves)
    kinds = Annotated[reduce(or_, (source.Config for source in SOURCES.values())), Field(discriminator="source")]

    class Config(root_config.Config):
        data: kinds = Field(description="what is learnt from")

    monkeypatch.setattr(root_config, "Config", Config)
