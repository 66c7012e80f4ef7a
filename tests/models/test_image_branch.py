import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from models.image_branch import build_network, encode_image, measure_dims, remove_classification_layer
from tests.conftest import on_meta

# Name -> width of the layer before the classification layer, from torchvision's own definitions.
FAMILIES = {
    "mobilenet_v2": 1280,
    "resnet18": 512,
    "efficientnet_b0": 1280,
    "convnext_tiny": 768,
    "regnet_y_400mf": 440,
    "squeezenet1_1": 512,
    "googlenet": 1024,
}


@pytest.mark.parametrize(("architecture", "width"), FAMILIES.items())
def test_the_embedding_is_what_the_classification_layer_would_have_read(architecture, width):
    torch.manual_seed(0)
    network = build_network(architecture).eval()
    read = []
    layers = [m for m in network.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    layers[-1].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(image)
        remove_classification_layer(network)
        embedding = network(image).flatten(1)
    assert measure_dims(network, 64, architecture).pooled == embedding.shape[1] == width
    if architecture != "squeezenet1_1":  # there, ReLU and pooling follow
        torch.testing.assert_close(embedding, read[0])
    assert network.training is False


# Architecture -> what its embedding is, given its tokens; None: layers that mix them follow.
OF_TOKENS = {
    "alexnet": None,
    "convnext_tiny": lambda tokens: layer_norm(tokens.mean(1), (768,), eps=1e-6),
    "densenet121": lambda tokens: tokens.mean(1),
    "efficientnet_b0": lambda tokens: tokens.mean(1),
    "googlenet": lambda tokens: tokens.mean(1),
    "inception_v3": lambda tokens: tokens.mean(1),
    "mnasnet0_5": lambda tokens: tokens.mean(1),
    "mobilenet_v2": lambda tokens: tokens.mean(1),
    "mobilenet_v3_small": None,
    "regnet_y_400mf": lambda tokens: tokens.mean(1),
    "resnet18": lambda tokens: tokens.mean(1),
    "shufflenet_v2_x0_5": lambda tokens: tokens.mean(1),
    "squeezenet1_1": lambda tokens: tokens.mean(1),
    "swin_t": lambda tokens: tokens.mean(1),
    "vit_b_32": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OF_TOKENS)
def test_tokens_change_nothing_in_the_embedding_and_are_what_it_is_made_of(architecture):
    torch.manual_seed(0)
    network = remove_classification_layer(build_network(architecture))
    size = 224 if architecture == "vit_b_32" else 96
    image = torch.randn(2, 3, size, size)

    def encode(with_tokens):
        torch.manual_seed(1)  # of dropout and stochastic depth
        return encode_image(copy.deepcopy(network), image, with_tokens=with_tokens)

    for mode in (True, False):
        network.train(mode)
        plain, encoded = encode(False), encode(True)
        assert plain.tokens is None and plain.mask is encoded.mask is None
        assert torch.equal(encoded.pooled, plain.pooled)
    assert measure_dims(network, size, architecture) == (encoded.pooled.shape[1], encoded.tokens.shape[2])
    if OF_TOKENS[architecture]:
        torch.testing.assert_close(OF_TOKENS[architecture](encoded.tokens), encoded.pooled)


@pytest.mark.slow
def test_each_of_torchvisions_networks_has_tokens(meta_networks):
    places = {}
    for architecture, network in meta_networks.items():
        network = copy.deepcopy(network)
        with on_meta():
            remove_classification_layer(network)
        tokens = encode_image(network, torch.empty(2, 3, 224, 224, device="meta"), with_tokens=True).tokens
        assert tokens.dim() == 3 and len(tokens) == 2, architecture
        places[architecture] = tokens.shape[1]
    other = {"alexnet": 36, "inception_v3": 25, "squeezenet1_0": 169, "squeezenet1_1": 169}
    other |= {"vit_b_16": 196, "vit_h_14": 256, "vit_l_16": 196}
    assert places == {architecture: other.get(architecture, 49) for architecture in meta_networks}


def test_a_network_that_is_not_torchvisions_has_an_embedding_only():
    encoded = encode_image(torch.nn.Flatten(), torch.ones(2, 3, 4, 4), with_tokens=True)
    assert encoded.pooled.shape == (2, 48) and encoded.tokens is None and encoded.mask is None


def test_measuring_keeps_the_training_mode_and_the_batchnorm_statistics():
    network = remove_classification_layer(build_network("resnet18"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_dims(network, 64, "resnet18")
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_an_unknown_architecture_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'mobilnet_v2' is not a classification network.*nearest: mobilenet_v2"):
        build_network("mobilnet_v2")


def test_a_network_that_reads_one_size_only_names_the_size_it_is_built_for():
    network = remove_classification_layer(build_network("vit_b_32", arguments={"image_size": 384}))
    with pytest.raises(ValueError) as error:
        measure_dims(network, 224, "vit_b_32")
    assert str(error.value).startswith("vit_b_32 cannot read images of 224 x 224 pixels (")
    assert "set data.image_size=384, which it is built for" in str(error.value)
    assert measure_dims(network, 384, "vit_b_32") == (768, 768)
    for size in (383, 385):
        with pytest.raises(ValueError, match="set data.image_size=384"):
            measure_dims(network, size, "vit_b_32")


def test_maxvit_reads_what_rounds_up_to_its_grid():
    network = remove_classification_layer(build_network("maxvit_t"))
    for size in (220, 225):
        with pytest.raises(ValueError, match="maxvit_t cannot read images of .* set data.image_size=224"):
            measure_dims(network, size, "maxvit_t")
    assert [measure_dims(network, size, "maxvit_t") for size in (221, 224)] == [(512, 512)] * 2


def test_a_size_that_is_too_small_is_torchs_own_reason():
    network = remove_classification_layer(build_network("inception_v3"))
    with pytest.raises(
        ValueError,
        match=r"inception_v3 cannot read images of 64 x 64 pixels \(.*; set data.image_size=224, .* or choose another",
    ):
        measure_dims(network, 64, "inception_v3")


@pytest.mark.slow
def test_of_torchvisions_networks_only_vit_and_maxvit_have_one_size(meta_networks):
    fixed = set()
    for architecture, network in meta_networks.items():
        read = []
        for size in (192, 224, 256):
            try:
                network(torch.empty(1, 3, size, size, device="meta"))
                read.append(size)
            except (AssertionError, RuntimeError):
                pass
        assert 224 in read, architecture
        fixed |= {architecture} if read == [224] else set()
    assert fixed == {"maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"}


def norms_of(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


# At 8 pixels, or the smallest size that they read; mobilenet_v2 at 32, where its last maps have one place, too.
@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("mobilenet_v2", 8),
        ("mobilenet_v2", 32),
        ("mobilenet_v3_small", 8),
        ("resnet18", 8),
        ("densenet121", 29),
        ("googlenet", 15),
        ("mnasnet0_5", 8),
        ("shufflenet_v2_x0_5", 8),
        ("efficientnet_b0", 8),
        ("regnet_y_400mf", 8),
    ],
)
def test_a_batch_of_one_trains_norms_that_have_a_variance_and_leaves_the_others(architecture, size):
    torch.manual_seed(0)
    network = remove_classification_layer(build_network(architecture))
    image = torch.randn(1, 3, size, size)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        network.train()(image)
    values = {}
    for norm in norms_of(network.eval()):
        norm.register_forward_pre_hook(lambda norm, inputs: values.update({norm: inputs[0][0, 0].numel()}))
        norm.reset_running_stats()
    network(image)

    network.train()
    frozen = next(norm for norm in norms_of(network) if values[norm] > 1).eval()
    encoded = encode_image(network, image)
    assert torch.isfinite(encoded.pooled).all()
    encoded.pooled.square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.grad is not None)
    for norm, count in values.items():
        trained = count > 1 and norm is not frozen
        assert norm.num_batches_tracked == trained
        assert bool(norm.running_mean.any()) == trained
        assert norm.training == (norm is not frozen) and len(norm._forward_pre_hooks) == 1
    assert min(values.values()) == 1


def test_a_norm_of_single_values_uses_its_running_statistics_by_hand():
    torch.manual_seed(0)
    first, last = nn.BatchNorm2d(3), nn.BatchNorm1d(3)
    network = nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).train()
    last.running_mean, last.running_var = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([4.0, 1.0, 0.25])
    image = torch.randn(1, 3, 2, 2)
    pooled = encode_image(network, image, with_tokens=True).pooled
    # A mean over places of what is normalised over those places is 0.
    expected = torch.tensor([[-0.25, 1.0, 0.0]])
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
    assert (int(first.num_batches_tracked), int(last.num_batches_tracked)) == (1, 0)

    encode_image(network, torch.randn(2, 3, 2, 2))  # two have a variance
    assert (int(first.num_batches_tracked), int(last.num_batches_tracked)) == (2, 1)
