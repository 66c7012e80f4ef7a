import copy
import inspect

import pytest
import torch
from torch import nn

from app.commands.root_config import parse_config
from app.param_groups.groups import GroupConfig, describe_groups, group_table, hyperparameters
from app.param_groups.optimizer import OptimizerConfig, build_optimizer, known_optimizers
from models.image_branch import build_network, remove_classification_layer
from tests.conftest import GROUP_NAMES, one_group


def build(model, name="AdamW", **group):
    return build_optimizer(model, one_group(name, **group))


@pytest.mark.parametrize("name", sorted(known_optimizers()))
def test_every_optimizer_follows_a_changed_lr(name):
    """Measured: the same gradients, with the lr divided by a million after ten steps."""

    def moved(factor: float) -> float:
        parameter = nn.Parameter(torch.ones(4, 4))
        optimizer = known_optimizers()[name]([parameter], lr=0.01)
        for step in range(20):
            if step == 10:
                optimizer.param_groups[0]["lr"] *= factor
            before = parameter.detach().clone()
            parameter.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return (parameter.detach() - before).norm().item()

    assert moved(1e-6) < 0.5 * moved(1.0)


def test_adafactor_takes_its_two_eps(small_model, tree):
    tree["optimizer"] = {"name": "Adafactor", "groups": {"all": {"params": ["*"], "lr": 0.01, "eps": [None, 0.002]}}}
    tree["learning_rates"]["reductions"] = []
    optimizer, groups = build_optimizer(small_model, parse_config(tree)[0].optimizer)
    assert optimizer.param_groups[0]["eps"] == (None, 0.002)
    assert "None, 0.002" in group_table(groups)


@pytest.mark.parametrize(
    ("name", "eps", "message"),
    [
        ("AdamW", [None, 1e-3], r"all.eps: found \[None, 0.001\], AdamW takes one number"),
        ("Adamax", [1e-30, 1e-3], "Adamax takes one number"),
        ("Adafactor", 1e-3, r"all.eps: found 0.001, Adafactor takes two numbers, e.g. \[null, 1.0e-3\]"),
    ],
)
def test_an_eps_of_another_form_is_refused(small_model, name, eps, message):
    with pytest.raises(ValueError, match=message):
        build(small_model, name, eps=eps)


def test_each_group_trains_with_its_own_values(small_model, optimizer_config):
    """Oracle: one separate AdamW per module, with that module's values."""
    optimizer, _ = build_optimizer(small_model, optimizer_config)
    twin = {name: p.detach().clone().requires_grad_() for name, p in small_model.named_parameters()}
    singles = [
        torch.optim.AdamW(
            [p for n, p in twin.items() if n.startswith(f"{name}.")],
            lr=values.lr,
            weight_decay=values.weight_decay,
            betas=tuple(values.betas),
            fused=True,
        )
        for name, values in optimizer_config.groups.items()
    ]
    for step in range(3):
        for name, parameter in small_model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            parameter.grad, twin[name].grad = gradient, gradient.clone()
        for one in [optimizer, *singles]:
            one.step()
    for name, parameter in small_model.named_parameters():
        assert torch.equal(parameter, twin[name]), name


def test_every_optimizer_of_torch_that_takes_groups_and_no_closure_trains(small_model, small_batch):
    names = set(known_optimizers())
    assert names >= {
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "ASGD",
    }
    assert not names & {"LBFGS", "SparseAdam", "Rprop", "Optimizer"}
    for name in sorted(names - {"Muon"}):  # takes matrices only
        model = copy.deepcopy(small_model)
        optimizer, _ = build(model, name, lr=0.01)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        optimizer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), name
        fused = "fused" in inspect.signature(type(optimizer)).parameters
        assert bool(optimizer.defaults.get("fused")) == fused


@pytest.mark.skipif("Muon" not in known_optimizers(), reason="this torch has no Muon")
def test_an_optimizer_that_refuses_a_groups_tensors_says_so_in_one_line(small_model):
    with pytest.raises(ValueError, match="optimizer.name: Muon refuses these groups: Muon only supports 2D"):
        build(small_model, "Muon")


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("Adamw", {}, "optimizer.name: unknown optimizer 'Adamw'; did you mean 'AdamW'? known here: "),
        ("LBFGS", {}, "unknown optimizer 'LBFGS'"),
        ("SGD", {"betas": [0.9, 0.99]}, "optimizer.groups.all.betas: SGD has no betas; it has lr, momentum, dampening"),
        ("SGD", {"options": {"momentun": 0.9}}, "options.momentun: SGD has no such argument; did you mean 'momentum'?"),
        ("SGD", {"options": {"fused": True}}, "options.fused: SGD has no such argument"),
        ("SGD", {"options": {"lr": 0.9}}, "options.lr: belongs one level up, as optimizer.groups.all.lr"),
        ("SGD", {"options": {"momentum": -1.0}}, "optimizer.groups.all: SGD refuses it: Invalid momentum value: -1.0"),
        ("SGD", {"options": {"nesterov": True}}, "optimizer.groups.all: SGD refuses it: Nesterov momentum requires"),
        ("SGD", {"options": {"momentum": "high"}}, "optimizer.groups.all: SGD refuses it: "),
        ("Rprop", {}, "unknown optimizer 'Rprop'"),  # it does not follow a changed lr
        (
            "AdamW",
            {"layer_decay": 0.5},
            "optimizer.groups.all.layer_decay: the group spans several modules (fusion_head, ",
        ),
    ],
)
def test_values_that_an_optimizer_does_not_take_are_refused_by_key(small_model, name, group, message):
    with pytest.raises(ValueError) as error:
        build(small_model, name, **group)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_reach_the_optimizer_per_group(small_model):
    groups = {
        "a": GroupConfig(lr=0.1, params=["image_branch.*"], options={"momentum": 0.9, "nesterov": True}),
        "b": GroupConfig(lr=0.1, params=["[!i]*"], options={"momentum": 0.5}, eps=None),
    }
    optimizer, _ = build_optimizer(small_model, OptimizerConfig(name="SGD", groups=groups))
    assert [(e["name"], e["momentum"], e["nesterov"]) for e in optimizer.param_groups] == [
        ("a", 0.9, True),
        ("b", 0.5, False),
    ]


def test_no_decay_splits_by_type_and_stays_one_group(small_model, with_groups):
    config = with_groups(dict.fromkeys(GROUP_NAMES, {"no_decay": True, "weight_decay": 0.1}))
    optimizer, built = build_optimizer(small_model, config)
    undecayed = {p for entry in optimizer.param_groups if entry["weight_decay"] == 0 for p in entry["params"]}
    names = {name for name, p in small_model.named_parameters() if p in undecayed}
    assert names == {name for name, p in small_model.named_parameters() if p.dim() == 1}  # here all are bias or norm
    assert [group.name for group in built] == list(GROUP_NAMES)
    assert [len(group.param_groups) for group in built] == [2, 2, 2, 2]
    # Proof by training: without gradient, AdamW moves a parameter by its decay alone.
    before = {name: p.detach().clone() for name, p in small_model.named_parameters()}
    for parameter in small_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, p in small_model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {name for name, p in small_model.named_parameters() if p.dim() > 1}
    assert describe_groups(built)[0]["weight_decay"] == 0.1
    assert "3 tensors" in group_table(built).splitlines()[2]  # two biases and the norm's weight


def test_layer_decay_by_hand(small_model, with_groups):
    config = with_groups({"temporal_branch": {"layer_decay": 0.8, "no_decay": True, "lr": 1.0}})
    optimizer, built = build_optimizer(small_model, config)
    lr_of = {p: entry["lr"] for entry in optimizer.param_groups for p in entry["params"]}
    lstm = small_model.temporal_branch.lstm
    assert lr_of[lstm.weight_ih_l1] == lr_of[lstm.bias_ih_l1] == 1.0
    assert lr_of[lstm.weight_ih_l0] == lr_of[lstm.bias_hh_l0] == pytest.approx(0.8)
    assert "0.8 to 1" in group_table(built).splitlines()[3]
    assert hyperparameters(built)["temporal_branch"]["lr"] == 1.0


def test_layer_decay_of_modules_side_by_side_is_refused(small_model, with_groups):
    with pytest.raises(ValueError) as error:
        build_optimizer(small_model, with_groups({"unimodal_heads": {"layer_decay": 0.8}}))
    assert str(error.value) == (
        "optimizer.groups.unimodal_heads.layer_decay: unimodal_heads is no sequence: its modules (image_branch, "
        "temporal_branch) stand side by side and have no order of layers; leave layer_decay out"
    )


@pytest.mark.parametrize(
    "architecture", ["mobilenet_v2", "resnet18", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "swin_t"]
)
def test_layer_decay_falls_geometrically_from_output_to_stem(architecture):
    model = nn.ModuleDict({"image_branch": remove_classification_layer(build_network(architecture))})
    groups = {"image_branch": GroupConfig(lr=1.0, layer_decay=0.8)}
    optimizer, _ = build_optimizer(model, OptimizerConfig(name="AdamW", groups=groups))
    lrs = sorted(entry["lr"] for entry in optimizer.param_groups)
    assert lrs == pytest.approx([0.8**i for i in reversed(range(len(lrs)))])
    lr_of = {p: entry["lr"] for entry in optimizer.param_groups for p in entry["params"]}
    parameters = list(model.parameters())
    assert lr_of[parameters[0]] == lrs[0] and lr_of[parameters[-1]] == 1.0


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5}, {}],
    ids=["momentum", "nesterov", "dampening", "plain"],
)
def test_sgd_takes_a_parameter_whose_first_gradient_comes_late_as_torchs_own_does(options):
    """The fused kernel alone fails: it takes the momentum of all parameters of an entry, or of none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    reference = copy.deepcopy(model)
    ours, _ = build_optimizer(model, one_group("SGD", weight_decay=0.1, options=options))
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1, weight_decay=0.1, foreach=False, **options)
    for step, there in enumerate([(0,), (0, 1), (1,), (0, 1)]):
        for layers, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            for i in there:
                for parameter in layers[i].parameters():
                    parameter.grad = torch.full_like(parameter, step + 1.0)
            optimizer.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)
