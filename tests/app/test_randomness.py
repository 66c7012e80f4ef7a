import os
import re
import subprocess
import sys

import pytest
import torch
from scipy.stats import kstest

from app.randomness import Draws, derive_seed, seed_device, stream
from tests.conftest import ROOT


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed("noise", 0, 1, 2) == derive_seed("noise", 0, 1, 2)
    assert derive_seed("noise", 0, 1, 2) == 4125919401883199932


def test_purposes_do_not_run_into_each_other():
    seeds = {derive_seed("a", i, j) for i in range(30) for j in range(30)} | {
        derive_seed("a1", 1),
        derive_seed("a", 11),
    }
    assert len(seeds) == 902


def test_a_stream_does_not_depend_on_what_was_drawn_elsewhere():
    first = torch.rand(3, generator=stream("x", 1))
    torch.rand(100)
    stream("y", 1)
    assert torch.equal(first, torch.rand(3, generator=stream("x", 1)))
    seed_device(torch.device("cpu"), "x", 1)
    assert torch.equal(first, torch.rand(3))


class Watched:
    """In place of a device's generator: notes its seeds."""

    def __init__(self):
        self.seeds = []

    def manual_seed(self, seed):
        self.seeds.append(seed)


@pytest.mark.parametrize(
    ("device", "seeded"),
    [("cpu", "cpu"), ("cuda", "cuda 1"), ("cuda:0", "cuda 0"), ("cuda:1", "cuda 1"), ("mps", "mps")],
)
def test_the_generator_of_the_device_is_seeded_and_no_other(monkeypatch, device, seeded):
    watched = {name: Watched() for name in ("cpu", "cuda 0", "cuda 1", "mps")}
    monkeypatch.setattr(torch, "default_generator", watched["cpu"])
    monkeypatch.setattr(torch.cuda, "default_generators", (watched["cuda 0"], watched["cuda 1"]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.mps, "manual_seed", watched["mps"].manual_seed)
    seed_device(torch.device(device), "dropout", "fusion_head", 0, 7)
    expected = derive_seed("dropout", "fusion_head", 0, 7)
    assert {name: of.seeds for name, of in watched.items() if of.seeds} == {seeded: [expected]}


def test_draws_depend_on_purpose_epoch_and_sample_alone():
    def draws(*purpose, num_samples=3000, width=3):
        return Draws(*purpose, num_samples=num_samples, width=width)

    indices = torch.tensor([0, 2999, 1023, 1024, 0])
    first = draws("a", 1)(5, indices)
    again = draws("a", 1)
    again(4, torch.arange(3000))
    assert torch.equal(torch.cat([again(5, indices[i : i + 1]) for i in range(5)]), first)
    assert torch.equal(draws("a", 1, num_samples=5000)(5, indices), first)  # more samples change no other's
    assert torch.equal(again(5, torch.arange(3000).flip(0)).flip(0)[indices], first)
    for other in (draws("b", 1)(5, indices), draws("a", 2)(5, indices), draws("a", 1)(6, indices)):
        assert not (other == first).any()


def test_draws_are_uniform_and_of_samples_independent():
    found = Draws("uniform", num_samples=5000, width=2)(0, torch.arange(5000))
    assert found.shape == (5000, 2) and found.min() >= 0 and found.max() < 1
    assert len(found.unique()) > 9900
    for column in found.T:
        assert kstest(column.numpy(), "uniform").pvalue > 0.001
    assert abs(torch.corrcoef(torch.stack([found[:-1, 0], found[1:, 0], found[:-1, 1]]))[0, 1:]).max() < 0.05


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch computes without MKL")
def test_mkl_computes_reproducibly_from_its_first_product_on():
    settings = {**os.environ, "MKL_VERBOSE": "1"}  # MKL prints each call with its mode
    settings.pop("MKL_CBWR", None)
    command = ["train.py", "--config", "configs/smoke.yaml", "--dry-run", "model.image_branch.weights=none"]
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True)
    modes = re.findall("MKL_VERBOSE SGEMM.* (CNR:[^ ]*)", result.stdout)
    assert result.returncode == 0 and set(modes) == {"CNR:AUTO"}
