import pytest
import torch
import torchvision
from torch import nn

from app.layers import biases_and_norms, layers_in_order
from models.image_branch import build_network, remove_classification_layer
from models.temporal_branch import TemporalBranch


def names(module, parameters):
    return {name for name, p in module.named_parameters() if any(p is other for other in parameters)}


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(4))
        self.bias = nn.Linear(4, 4)  # a module that is called bias


def test_biases_and_norms_are_found_by_type_and_dimension_not_by_name():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 4, num_layers=2, bidirectional=True),
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.GroupNorm(2, 4),
            "batch": nn.BatchNorm1d(4),
            "layer": nn.LayerNorm((2, 4)),
            "slope": nn.PReLU(4),
            "attention": nn.MultiheadAttention(4, 2),
            "gated": Gated(),
        }
    )
    spared = names(model, biases_and_norms(model))
    lstm = {f"lstm.bias_{kind}_l{layer}{way}" for kind in ("ih", "hh") for layer in (0, 1) for way in ("", "_reverse")}
    norms = {f"{norm}.{part}" for norm in ("norm", "batch", "layer") for part in ("weight", "bias")}
    others = {"conv.bias", "attention.in_proj_bias", "attention.out_proj.bias", "gated.bias.bias"}
    assert spared == lstm | norms | others


def test_torchvisions_own_norms_count_and_its_layer_scale_does_not():
    network = build_network("convnext_tiny")
    spared = names(network, biases_and_norms(network))
    assert "features.0.1.weight" in spared  # torchvision's LayerNorm2d
    assert "features.1.0.layer_scale" not in spared


# Blocks from the stem on, counted from the papers' tables.
DEPTHS = {
    "mobilenet_v2": 19,  # stem, 17 inverted residuals, last convolution
    "resnet18": 9,  # stem, 8 basic blocks
    "efficientnet_b0": 18,  # stem, 16 MBConv, last convolution
    "convnext_tiny": 22,  # stem, 18 blocks, 3 downsamplings
    "regnet_y_400mf": 17,  # stem, 16 blocks
}


@pytest.mark.parametrize(("architecture", "depth"), DEPTHS.items())
def test_layers_of_torchvisions_families(architecture, depth):
    network = remove_classification_layer(build_network(architecture))
    layers = layers_in_order(network)
    assert len(layers) == depth
    held = [parameter for layer in layers for parameter in layer]
    assert len(held) == len(set(held)) and set(held) == set(network.parameters())
    # In the order of computation: the first use of each layer's parameters, as hooks see it.
    owner = {parameter: depth for depth, layer in enumerate(layers) for parameter in layer}
    uses = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own:
            module.register_forward_pre_hook(lambda *_, depth=owner[own[0]]: uses.append(depth))
    network.eval()(torch.zeros(1, 3, 64, 64))
    assert list(dict.fromkeys(uses)) == list(range(depth))


def test_a_norm_belongs_to_the_layer_that_it_follows():
    network = torchvision.models.resnet18()
    stem = names(network, layers_in_order(network)[0])
    assert stem == {"conv1.weight", "bn1.weight", "bn1.bias"}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_of_a_stacked_lstm(bidirectional):
    branch = TemporalBranch(3, hidden_size=4, num_layers=3, bidirectional=bidirectional)
    layers = [names(branch, layer) for layer in layers_in_order(branch)]
    assert len(layers) == 3
    for depth, layer in enumerate(layers):
        assert len(layer) == (8 if bidirectional else 4)
        assert all(f"_l{depth}" in name for name in layer)
