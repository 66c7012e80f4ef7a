import torch

from app.randomness import derive_seed, seed_everything, stream


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
    seed_everything("x", 1)
    assert torch.equal(first, torch.rand(3))
