"""Which tensor of a weights file goes where, and which file is refused."""

import pytest
import torch
import torchvision
from torch import nn

from models.image_branch import build_network, classifier_modules
from models.pretrained import load_weights_file, match_tensors, shapes_of


def without_counters(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def with_other_names(state):
    """Nested otherwise: each module gets another name, the last part of a tensor's name stays."""
    modules = {}
    return {
        f"net.{modules.setdefault(name.rpartition('.')[0], len(modules))}.{name.rpartition('.')[2]}": value
        for name, value in state.items()
    }


FORMS = {
    "by name": lambda state: state,
    "by name, without counters": without_counters,
    "by order": with_other_names,
    "by order, without counters": lambda state: with_other_names(without_counters(state)),
}


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
@pytest.mark.parametrize("form", ["by name", "by order"])
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
            assert list(matched) == list(needed if "without" not in form else without_counters(needed)), name


SMALL = {"a.weight": (4, 3), "b.weight": (4,), "b.running_mean": (4,), "b.running_var": (4,), "c.weight": (9, 4)}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"d.weight": (4, 4)}, "the network has no d.weight: the file's network seems to be deeper"),
        ({"b.weight": None}, "b.weight is missing: the file's network seems to be shallower, or cut short"),
        ({"a.weight": (5, 3)}, r"a.weight has shape \(5, 3\), the network's \(4, 3\): .* of other widths"),
        ({"b.weight": None, "d.x": (1,)}, "b.weight is missing and the network has no d.x: .* seems to be another"),
    ],
)
def test_a_refusal_names_the_first_tensor_and_what_the_file_seems_to_be(file, message):
    changed = {name: shape for name, shape in (SMALL | file).items() if shape}
    with pytest.raises(ValueError, match=message):
        match_tensors(SMALL, ["c"], changed)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["x.weight", "y.weight", "y.running_var", "y.running_mean"],
            "y.running_var stands where b.running_mean belongs",
        ),
        (["x.weight", "y.weight", "y.running_mean"], "it ends before b.running_var, .* shallower"),
        (["x.weight", "y.weight", "y.running_mean", "y.running_var", "z.gamma"], "it goes on with z.gamma, .* deeper"),
    ],
)
def test_by_order_the_last_parts_of_the_names_agree_too(names, message):
    file = dict(zip(names, SMALL.values(), strict=False))
    with pytest.raises(ValueError, match=message):
        match_tensors(SMALL, ["c"], file)
    good = dict(zip(["x.weight", "y.weight", "y.running_mean", "y.running_var"], SMALL.values(), strict=False))
    assert match_tensors(SMALL, ["c"], good) == dict(zip(SMALL, good, strict=False))


def test_order_serves_a_file_with_other_names_and_no_counters(tmp_path):
    source, target = build_network("resnet18"), build_network("resnet18")
    nn.init.normal_(source.bn1.running_mean)
    torch.save(with_other_names(without_counters(source.state_dict())), tmp_path / "w.pt")
    assert load_weights_file(target, tmp_path / "w.pt") == "w.pt (100 tensors)"
    for name, value in without_counters(source.state_dict()).items():
        assert name.startswith("fc.") or torch.equal(value, target.state_dict()[name]), name


def test_a_deeper_networks_file_changes_nothing(tmp_path):
    torch.save(build_network("resnet34").state_dict(), tmp_path / "w.pt")
    target = build_network("resnet18")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match="not of this architecture: the network has no layer1.2.conv1.weight.*deeper"):
        load_weights_file(target, tmp_path / "w.pt")
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
