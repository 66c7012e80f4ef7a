import torch

from app.commands.build import build_loaders
from data.split import Split
from tests.conftest import replace

CPU = torch.device("cpu")


class Rows(Split):
    """30 samples of class 0, 10 of class 1."""

    labels = torch.tensor([0] * 30 + [1] * 10)

    def __len__(self):
        return len(self.labels)

    def gather(self, epoch, indices):
        return {"index": indices}


def read(config, split: str, epoch: int = 0) -> list[list[int]]:
    """The samples of each batch."""
    loaders = build_loaders(config, {name: Rows() for name in ("train", "val", "test")}, CPU)
    loaders[split].sampler.epoch = epoch
    return [batch["index"].tolist() for batch in loaders[split]]


def test_only_training_is_shuffled_or_drawn(config):
    each_once = [*range(40)]
    for sampler in ("shuffle", "class_balanced"):
        changed = replace(config, data=replace(config.data, sampler=sampler, batch_size=16))
        assert sum(read(changed, "val"), []) == sum(read(changed, "test"), []) == each_once
        drawn = sum(read(changed, "train"), [])
        assert drawn != each_once and len(drawn) == 40
        assert (sorted(drawn) == each_once) == (sampler == "shuffle")


def test_a_limit_holds_for_every_pass(config):
    changed = replace(config, run=replace(config.run, limit_batches=2), data=replace(config.data, batch_size=8))
    assert read(changed, "val") == read(changed, "test") == [[*range(8)], [*range(8, 16)]]
    assert [len(batch) for batch in read(changed, "train")] == [8, 8]
