from functools import partial

import pytest
import torch
from scipy.stats import chisquare

from data import loaders
from data.loaders import EpochBatches
from data.split import Split

make_loader = partial(loaders.make_loader, device=torch.device("cpu"))


class Echo(Split):
    labels = torch.tensor([0] * 80 + [2] * 20 + [3] * 3)  # no sample is of class 1

    def __len__(self):
        return 103

    def gather(self, epoch, indices):
        return {"epoch": torch.full_like(indices, epoch), "index": indices}


def order(loader):
    return torch.cat([batch["index"] for batch in loader]).tolist()


def test_each_sample_once_in_batches_of_nearly_one_size():
    sizes = [len(indices) for _, indices in EpochBatches(103, 10, shuffle=True)]
    assert sum(sizes) == 103 and len(sizes) == 11 and min(sizes) == 9 and max(sizes) == 10
    assert sorted(order(make_loader(Echo(), 10, shuffle=True))) == list(range(103))


def test_order_is_derived_from_seed_and_epoch():
    loader = make_loader(Echo(), 10, shuffle=True, seed=1)
    first = order(loader)
    torch.rand(10)
    assert order(loader) == first
    loader.sampler.epoch = 1
    assert order(loader) != first
    assert next(iter(loader))["epoch"].unique().tolist() == [1]
    assert order(make_loader(Echo(), 10, shuffle=True, seed=2)) != first
    assert order(make_loader(Echo(), 10)) == list(range(103))


def test_a_class_balanced_epoch_has_as_many_samples_and_each_class_equally_often():
    loader = make_loader(Echo(), 10, shuffle=True, class_balanced=True, seed=1)
    drawn = []
    for loader.sampler.epoch in range(100):
        sizes = [len(batch["index"]) for batch in loader]
        assert sum(sizes) == 103 and len(sizes) == len(loader) == 11 and {*sizes} == {9, 10}
        drawn += order(loader)
    by_class = Echo.labels[drawn].bincount(minlength=4)
    assert by_class[1] == 0 and chisquare(by_class[[0, 2, 3]]).pvalue > 0.001
    for label in (0, 2, 3):  # and within a class each sample
        by_sample = torch.tensor(drawn).bincount(minlength=103)[Echo.labels == label]
        assert chisquare(by_sample).pvalue > 0.001


def test_what_is_drawn_depends_on_seed_and_epoch_alone():
    loader = make_loader(Echo(), 10, shuffle=True, class_balanced=True, seed=1)
    first = order(loader)
    loader.sampler.epoch = 1
    second = order(loader)
    torch.rand(10)
    loader.sampler.epoch = 0
    assert order(loader) == first != second
    assert order(make_loader(Echo(), 7, shuffle=True, class_balanced=True, seed=1)) == first
    assert order(make_loader(Echo(), 10, shuffle=True, class_balanced=True, seed=2)) != first


@pytest.mark.parametrize("class_balanced", [False, True])
def test_a_limit_keeps_the_same_samples_in_every_epoch_and_shuffles_them(class_balanced):
    settings = {"shuffle": True, "class_balanced": class_balanced, "seed": 1}
    whole, limited = make_loader(Echo(), 10, **settings), make_loader(Echo(), 10, **settings, limit_batches=3)
    first, orders = order(whole)[:30], []
    for limited.sampler.epoch in range(3):
        assert [len(batch["index"]) for batch in limited] == [10, 10, 10] and len(limited) == 3
        assert {*next(iter(limited))["epoch"].tolist()} == {limited.sampler.epoch}
        orders.append(order(limited))
        assert sorted(orders[-1]) == sorted(first)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    limited.sampler.epoch = 1
    assert order(limited) == orders[1]


def test_a_limit_of_a_pass_that_is_not_shuffled_takes_the_first_batches():
    assert order(make_loader(Echo(), 10, limit_batches=2)) == list(range(20))


@pytest.mark.parametrize("limit", [11, 12, None])
def test_a_limit_that_is_not_reached_changes_nothing(limit):
    whole, limited = make_loader(Echo(), 10, shuffle=True), make_loader(Echo(), 10, shuffle=True, limit_batches=limit)
    for epoch in range(2):
        whole.sampler.epoch = limited.sampler.epoch = epoch
        assert order(limited) == order(whole)
