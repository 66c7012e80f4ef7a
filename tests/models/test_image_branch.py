import pytest
import torch

from models.image_branch import build_network, measure_embedding_dim, remove_classification_layer

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
    assert measure_embedding_dim(network, 64, architecture) == embedding.shape[1] == width
    if architecture != "squeezenet1_1":  # there, ReLU and pooling follow
        torch.testing.assert_close(embedding, read[0])
    assert network.training is False


def test_measuring_keeps_the_training_mode_and_the_batchnorm_statistics():
    network = remove_classification_layer(build_network("resnet18"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_embedding_dim(network, 64, "resnet18")
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_an_unknown_architecture_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'mobilnet_v2' is not a classification network.*nearest: mobilenet_v2"):
        build_network("mobilnet_v2")


def test_a_network_that_reads_one_size_only_names_it():
    network = remove_classification_layer(build_network("vit_b_32", arguments={"image_size": 384}))
    with pytest.raises(ValueError) as error:
        measure_embedding_dim(network, 224, "vit_b_32")
    assert str(error.value) == "vit_b_32 reads images of 384 x 384 pixels only; set data.image_size=384"
    assert measure_embedding_dim(network, 384, "vit_b_32") == 768
    for size in (383, 385):
        with pytest.raises(ValueError, match="set data.image_size=384"):
            measure_embedding_dim(network, size, "vit_b_32")


def test_maxvit_reads_what_rounds_up_to_its_grid():
    network = remove_classification_layer(build_network("maxvit_t"))
    for size in (220, 225):
        with pytest.raises(ValueError, match="maxvit_t reads images of 221 to 224 pixels only; set data.image_size=22"):
            measure_embedding_dim(network, size, "maxvit_t")
    assert [measure_embedding_dim(network, size, "maxvit_t") for size in (221, 224)] == [512, 512]


def test_a_size_that_is_too_small_is_torchs_own_reason():
    network = remove_classification_layer(build_network("inception_v3"))
    with pytest.raises(ValueError, match=r"inception_v3 cannot read images of 64 x 64 pixels \(.*; choose another"):
        measure_embedding_dim(network, 64, "inception_v3")


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
