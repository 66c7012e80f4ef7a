import pytest
import torch
import torchvision
from torch import nn

from app.param_groups.layers import biases_and_norms, layers_in_order
from models.image_branch import build_network, remove_classification_layer
from models.temporal_branch import TemporalBranch
from tests.conftest import on_meta


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
            "vectors": nn.ParameterDict({"absent": torch.zeros(4), "matrix": torch.zeros(4, 4)}),
        }
    )
    undecayed = names(model, biases_and_norms(model))
    lstm = {f"lstm.bias_{kind}_l{layer}{way}" for kind in ("ih", "hh") for layer in (0, 1) for way in ("", "_reverse")}
    norms = {f"{norm}.{part}" for norm in ("norm", "batch", "layer") for part in ("weight", "bias")}
    others = {"conv.bias", "attention.in_proj_bias", "attention.out_proj.bias", "gated.bias.bias", "vectors.absent"}
    assert undecayed == lstm | norms | others


def test_torchvisions_own_norms_count_and_its_layer_scale_does_not():
    network = build_network("convnext_tiny")
    undecayed = names(network, biases_and_norms(network))
    assert "features.0.1.weight" in undecayed  # torchvision's LayerNorm2d
    assert "features.1.0.layer_scale" not in undecayed


# Layer by layer, the modules and parameters whose names begin so; each line read off the architecture's printout.
LAYERS = {
    "resnet18": [
        "conv1 bn1",
        "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1",
    ],
    "mobilenet_v2": [f"features.{i}" for i in range(19)],  # stem, 17 inverted residuals, last convolution
    "efficientnet_b0": [
        "features.0",
        "features.1.0",
        "features.2.0", "features.2.1",
        "features.3.0", "features.3.1",
        "features.4.0", "features.4.1", "features.4.2",
        "features.5.0", "features.5.1", "features.5.2",
        "features.6.0", "features.6.1", "features.6.2", "features.6.3",
        "features.7.0",
        "features.8",
    ],
    "efficientnet_v2_s": [
        "features.0",
        *(f"features.1.{i}" for i in range(2)),
        *(f"features.2.{i}" for i in range(4)),
        *(f"features.3.{i}" for i in range(4)),
        *(f"features.4.{i}" for i in range(6)),
        *(f"features.5.{i}" for i in range(9)),
        *(f"features.6.{i}" for i in range(15)),
        "features.7",
    ],
    "regnet_y_400mf": [
        "stem",
        "trunk_output.block1.block1-0",
        *(f"trunk_output.block2.block2-{i}" for i in range(3)),
        *(f"trunk_output.block3.block3-{i}" for i in range(6)),
        *(f"trunk_output.block4.block4-{i}" for i in range(6)),
    ],
    "regnet_x_400mf": [
        "stem",
        "trunk_output.block1.block1-0",
        *(f"trunk_output.block2.block2-{i}" for i in range(2)),
        *(f"trunk_output.block3.block3-{i}" for i in range(7)),
        *(f"trunk_output.block4.block4-{i}" for i in range(12)),
    ],
    "densenet121": [
        "features.conv0 features.norm0",
        *(f"features.denseblock1.denselayer{i}" for i in range(1, 7)),
        "features.transition1",
        *(f"features.denseblock2.denselayer{i}" for i in range(1, 13)),
        "features.transition2",
        *(f"features.denseblock3.denselayer{i}" for i in range(1, 25)),
        "features.transition3",
        *(f"features.denseblock4.denselayer{i}" for i in range(1, 16)),
        "features.denseblock4.denselayer16 features.norm5",
    ],
    "convnext_tiny": [
        "features.0",
        "features.1.0", "features.1.1", "features.1.2",
        "features.2",
        "features.3.0", "features.3.1", "features.3.2",
        "features.4",
        *(f"features.5.{i}" for i in range(9)),
        "features.6",
        "features.7.0", "features.7.1", "features.7.2 classifier.0",
    ],
    "swin_t": [
        "features.0",
        "features.1.0", "features.1.1",
        "features.2",
        "features.3.0", "features.3.1",
        "features.4",
        "features.5.0", "features.5.1", "features.5.2", "features.5.3", "features.5.4", "features.5.5",
        "features.6",
        "features.7.0", "features.7.1 norm",
    ],
    "vit_b_16": [
        "class_token conv_proj encoder.pos_embedding",
        *(f"encoder.layers.encoder_layer_{i}" for i in range(11)),
        "encoder.layers.encoder_layer_11 encoder.ln",
    ],
    "maxvit_t": [
        "stem.0", "stem.1",
        "blocks.0.layers.0", "blocks.0.layers.1",
        "blocks.1.layers.0", "blocks.1.layers.1",
        "blocks.2.layers.0", "blocks.2.layers.1", "blocks.2.layers.2", "blocks.2.layers.3", "blocks.2.layers.4",
        "blocks.3.layers.0", "blocks.3.layers.1",
        "classifier",
    ],
    "googlenet": [
        "conv1", "conv2", "conv3",
        *(f"inception{block}" for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    ],
}  # fmt: skip


def encoder(architecture):
    with on_meta():
        return remove_classification_layer(build_network(architecture)).eval()


@pytest.mark.parametrize("architecture", LAYERS)
def test_layers_of_torchvisions_families(architecture):
    network = encoder(architecture)
    expected = [
        {name for name, _ in network.named_parameters() if f"{name}.".startswith(tuple(f"{p}." for p in line.split()))}
        for line in LAYERS[architecture]
    ]
    assert [names(network, layer) for layer in layers_in_order(network)] == expected
    assert sum(len(layer) for layer in expected) == len(list(network.parameters()))


@pytest.mark.slow
def test_layers_of_all_torchvisions_networks_are_in_the_order_of_computation():
    """The first use of each layer's modules, as hooks see it; every parameter in exactly one layer."""
    for architecture in torchvision.models.list_models(module=torchvision.models):
        network = encoder(architecture)
        layers = layers_in_order(network)
        held = [parameter for layer in layers for parameter in layer]
        assert len(held) == len(set(held)) and set(held) == set(network.parameters()), architecture
        owner = {parameter: depth for depth, layer in enumerate(layers) for parameter in layer}
        uses = []
        for module in network.modules():
            own = list(module.parameters(recurse=False))
            # Parameters of containers are used by the container's forward, after its hook.
            if own and not list(module.children()):
                module.register_forward_pre_hook(lambda *_, uses=uses, depth=owner[own[0]]: uses.append(depth))
        network(torch.zeros(1, 3, 224, 224, device="meta"))
        assert list(dict.fromkeys(uses)) == list(range(len(layers))), architecture


def test_modules_side_by_side_are_no_sequence():
    heads = nn.ModuleDict({"image_branch": nn.Linear(4, 3), "temporal_branch": nn.Linear(5, 3)})
    with pytest.raises(ValueError, match=r"\(image_branch, temporal_branch\) stand side by side"):
        layers_in_order(heads)
    del heads["temporal_branch"]
    assert [names(heads, layer) for layer in layers_in_order(heads)] == [{"image_branch.weight", "image_branch.bias"}]


def test_what_stands_before_the_first_layer_belongs_to_it():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    layers = [names(network, layer) for layer in layers_in_order(network)]
    assert layers == [{"0.weight", "0.bias", "1.weight", "1.bias"}, {"2.weight", "2.bias"}]
    network = nn.Sequential(nn.ParameterDict({"absent": torch.zeros(3)}), nn.Linear(3, 4), nn.Linear(4, 4))
    layers = [names(network, layer) for layer in layers_in_order(network)]
    assert layers == [{"0.absent", "1.weight", "1.bias"}, {"2.weight", "2.bias"}]
    norms = nn.Sequential(nn.BatchNorm2d(3))
    assert [names(norms, layer) for layer in layers_in_order(norms)] == [{"0.weight", "0.bias"}]


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
