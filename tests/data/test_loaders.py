import torch

from data.loaders import EpochBatches, make_loader


class Echo(torch.utils.data.Dataset):
    def __len__(self):
        return 103

    def __getitem__(self, epoch_and_indices):
        epoch, indices = epoch_and_indices
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
