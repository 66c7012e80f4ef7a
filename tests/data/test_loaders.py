import multiprocessing
import os
import re
import signal
from functools import partial

import pytest
import torch
from scipy.stats import chisquare

from app.messages import report_error
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


class Sequences(Echo):
    def __init__(self, lengths):
        self.lengths = lengths
        self.labels = torch.zeros(len(lengths), dtype=torch.int64)

    def __len__(self):
        return len(self.lengths)


def real_frames(lengths, batches):
    return sum(lengths[b].sum() for b in batches) / sum(len(b) * lengths[b].max() for b in batches)


@pytest.mark.parametrize("limit", [None, 40])
@pytest.mark.parametrize("class_balanced", [False, True])
def test_batches_of_like_length_have_nine_tenths_real_frames_and_the_same_samples(class_balanced, limit):
    lengths = torch.randint(10, 400, (1003,), generator=torch.Generator().manual_seed(0))
    settings = {"shuffle": True, "class_balanced": class_balanced, "seed": 1, "limit_batches": limit}
    loader, plain = (make_loader(Sequences(lengths), 16, **settings) for _ in range(2))
    plain.sampler.lengths = None
    for loader.sampler.epoch in range(3):
        plain.sampler.epoch = loader.sampler.epoch
        batches, others = ([b["index"] for b in one] for one in (loader, plain))
        assert real_frames(lengths, batches) >= 0.9 > 0.7 > real_frames(lengths, others)
        assert sorted(torch.cat(batches).tolist()) == sorted(torch.cat(others).tolist())
        assert {len(b) for b in batches} <= {15, 16} and len(batches) == len(loader)


def test_the_order_by_length_depends_on_seed_and_epoch_alone():
    lengths = torch.randint(1, 100, (300,), generator=torch.Generator().manual_seed(0))
    loader = make_loader(Sequences(lengths), 8, shuffle=True, seed=1)
    first = order(loader)
    loader.sampler.epoch = 1
    assert order(loader) != first
    torch.rand(3)
    loader.sampler.epoch = 0
    assert order(loader) == first == order(make_loader(Sequences(lengths), 8, shuffle=True, seed=1))
    assert order(make_loader(Sequences(lengths), 8, shuffle=True, seed=2)) != first


def test_pools_are_no_larger_than_they_must_be():
    """Worked by hand: pairs of lengths (1, 9) and (9, 1) in turn become, in pools of two batches, (1, 1) and (9, 9)."""
    lengths = torch.tensor([1, 9] * 8)
    sampler = EpochBatches(16, 2, shuffle=False, lengths=lengths)
    batches = [indices.tolist() for _, indices in sampler]
    assert sorted(batches) == sorted([[i, i + 2] for start in range(0, 16, 4) for i in (start, start + 1)])
    alike = EpochBatches(16, 2, shuffle=True, lengths=torch.full((16,), 7))
    plain = EpochBatches(16, 2, shuffle=True)
    assert [i.tolist() for _, i in alike] == [i.tolist() for _, i in plain]


def test_batches_by_length_come_in_an_order_drawn_for_each_epoch():
    """These lengths differ so much that the whole epoch is one pool: its batches are the same in each epoch."""
    loader = make_loader(Sequences(torch.tensor([3 ** (i // 4) for i in range(64)])), 4, shuffle=True)
    epochs = []
    for loader.sampler.epoch in range(3):
        epochs.append([min(batch["index"].tolist()) for batch in loader])
        assert sorted(epochs[-1]) == [*range(0, 64, 4)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_validation_is_never_ordered_by_length():
    assert order(make_loader(Sequences(torch.randint(1, 100, (300,))), 8)) == list(range(300))


class Halves(Echo):
    """Says where its two parts run, and that the second is given what the first made."""

    def gather(self, epoch, indices):
        return {"index": indices, "present": indices > 0, "gathered_by": torch.full_like(indices, os.getpid())}

    def finish(self, batch):
        return batch | {"finished_by": torch.full_like(batch["index"], os.getpid())}


@pytest.mark.parametrize(("on_device", "workers"), [(False, 0), (True, 0), (False, 1), (True, 2)])
def test_where_the_parts_of_a_batch_are_made(on_device, workers):
    loader = make_loader(Halves(), 10, on_device=on_device, workers=workers, shuffle=True)
    batches = list(loader)
    gathered, finished = ({b[f"{part}_by"][0].item() for b in batches} for part in ("gathered", "finished"))
    assert len(gathered) == max(1, workers) and (os.getpid() in gathered) == (workers == 0)
    assert finished == ({os.getpid()} if on_device else gathered)
    assert {b["gathered_by"][0].item() for b in loader} == gathered  # the same processes in the next epoch
    assert order(loader) == order(make_loader(Halves(), 10, shuffle=True))


def test_workers_where_a_batch_waits_for_files():
    waits = Echo()
    waits.read_ahead = True
    cores = len(os.sched_getaffinity(0))
    assert make_loader(waits, 10, workers=None).loader.num_workers == min(cores, 8)
    assert make_loader(waits, 10, workers=1).loader.num_workers == 1
    assert make_loader(Echo(), 10, workers=None).loader.num_workers == 0


def test_an_epoch_that_is_left_early_does_not_reach_into_the_next():
    loader = make_loader(Echo(), 10, workers=1, shuffle=True)
    batches = iter(loader)
    assert next(batches)["epoch"].unique().tolist() == [0]
    del batches
    loader.sampler.epoch = 1
    assert {*torch.cat([b["epoch"] for b in loader]).tolist()} == {1}


class Broken(Echo):
    def gather(self, epoch, indices):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("table.csv row 5, column image, 'a.png': is not there")


def test_an_error_in_a_worker_is_its_line_alone():
    for workers in (0, 1):
        with pytest.raises(OSError, match=r"^table\.csv row 5, column image, 'a\.png': is not there$"):
            list(make_loader(Broken(), 10, workers=workers))


def test_a_worker_that_was_killed_is_told_with_what_to_do():
    loader = make_loader(Broken(), 10, workers=1)
    loader.sampler.epoch = 1
    with pytest.raises(RuntimeError, match=r"^a process that reads samples was killed.*memory.*data\.workers=0"):
        list(loader)


def test_another_error_in_a_worker_is_its_own_line():
    class Uneven(Echo):
        def gather(self, epoch, indices):
            return {"label": torch.zeros(2) + torch.zeros(3)}

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match=r"^(RuntimeError: )?The size of tensor a \(2\) must match [^\n]*$"):
            list(make_loader(Uneven(), 10, workers=workers))


def test_a_worker_whose_end_interrupts_the_program_is_told_alike(capsys):
    """torch raises where the signal finds the program, seldom in the loader."""
    assert report_error(RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), prepared=True) == 1
    assert re.search(r"^error: RuntimeError: a process that .*\(pid 3\).*data\.workers=0", capsys.readouterr().err)


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="nothing is forked on Windows")
def test_an_interrupt_while_processes_are_forked_is_heard_and_never_reaches_them(monkeypatch):
    """Python drops an exception at a fork, and a worker that is interrupted is one that was killed."""
    heard, at_fork = [], [os.getpid()]

    def interrupt():
        if os.getpid() in at_fork:
            at_fork.clear()
            os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(after_in_parent=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            for batch in make_loader(Echo(), 10, workers=1):
                heard.append(batch)
    finally:
        at_fork.clear()
    assert not heard

    batches = iter(make_loader(Echo(), 10, workers=1))
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    list(batches)
