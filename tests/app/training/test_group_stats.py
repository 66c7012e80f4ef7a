import copy

import pytest
import torch

from app.param_groups.groups import GroupConfig
from app.param_groups.optimizer import OptimizerConfig, build_optimizer
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics, Starvation, StatisticsConfig, ratio_between
from models.image_branch import build_network
from tests.conftest import one_group, replace


def statistics_of(optimizer, groups, clip_norm=None):
    gradients = Gradients(optimizer, groups, clip_norm)
    return gradients, GroupStatistics(optimizer, groups, gradients)


def train_step(model, batch):
    output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
    losses = [
        torch.nn.functional.cross_entropy(o, batch["label"]) for o in (output.logits, *output.unimodal_logits.values())
    ]
    sum(losses).backward()


@pytest.fixture(params=[{}, {"no_decay": True, "layer_decay": 0.7}], ids=["plain", "split groups"])
def any_groups(request, optimizer_config):
    """Groups as they are, and each split into several torch param_groups."""
    groups = {name: replace(group, **request.param) for name, group in optimizer_config.groups.items()}
    del groups["unimodal_heads"], groups["fusion_head"]
    # These two have no single order of layers: a group over two modules cannot have layer_decay.
    groups["rest"] = GroupConfig(lr=0.1, weight_decay=0.1, params=["fusion_head.*", "unimodal_heads.*"], no_decay=True)
    return OptimizerConfig(name="AdamW", groups=groups)


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_equal_to_a_float64_reference(small_model, small_batch, any_groups, clip_norm):
    optimizer, groups = build_optimizer(small_model, any_groups)
    gradients, statistics = statistics_of(optimizer, groups, clip_norm)

    def norm(tensors):
        return sum((t.detach().double() ** 2).sum() for t in tensors).sqrt().item()

    for step in range(3):  # moments included
        optimizer.zero_grad()
        train_step(small_model, small_batch)
        small_model.image_branch[0].weight.grad[0, 0] = 0  # 9 exact zeros
        before = {g.name: [p.detach().double() for p in g.parameters.values()] for g in groups}
        moving = {g.name: [p for p in g.parameters.values() if p.grad is not None] for g in groups}
        raw = {name: norm([p.grad for p in parameters]) for name, parameters in moving.items()}
        gradients.clip_and_flag(step)
        statistics.before_step()
        optimizer.step()
        readings = statistics.after_step()

    total = sum(value**2 for value in raw.values()) ** 0.5
    share = min(1.0, clip_norm / total) if clip_norm else 1.0
    for group in groups:
        now = list(group.parameters.values())
        states = [optimizer.state[p] for p in moving[group.name]]
        values = sum(p.numel() for p in moving[group.name])
        zeros = sum(int((p.grad == 0).sum()) for p in moving[group.name])
        update = norm([p.detach().double() - b for p, b in zip(now, before[group.name], strict=True)])
        expected = {
            "grad_norm": raw[group.name],
            "clipped_grad_norm": raw[group.name] * share,
            "clipped_share": 1.0 if clip_norm else 0.0,
            "grad_share": raw[group.name] ** 2 / total**2,
            "zero_grad_share": zeros / values,
            "param_norm": norm(before[group.name]),
            "update_norm": update,
            "update_ratio": update / norm(before[group.name]),
            "momentum_norm": norm([s["exp_avg"] for s in states]),
            "second_moment_rms": (sum(s["exp_avg_sq"].double().sum() for s in states) / values).sqrt().item(),
            "lr": group.config.lr,
            "effective_lr": group.config.lr,
            "weight_decay": group.config.weight_decay,
        }
        for key, value in expected.items():
            assert readings[group.name][key] == pytest.approx(value, rel=1e-5), (group.name, key)
    assert readings["image_branch"]["zero_grad_share"] >= 9 / 120


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "resnet18"])
def test_equal_to_float64_on_networks_of_real_size(architecture):
    model = build_network(architecture).to(memory_format=torch.channels_last)
    optimizer, groups = build_optimizer(model, one_group(lr=1e-3))
    gradients, statistics = statistics_of(optimizer, groups)
    for i, parameter in enumerate(model.parameters()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        parameter.grad = 1e-3 * values.sign() * values.abs() ** 3  # heavy tails, as gradients have
    parameters = list(model.parameters())
    before = [p.detach().double() for p in parameters]
    gradients.clip_and_flag(0)
    statistics.before_step()
    optimizer.step()
    reading = statistics.after_step()["all"]

    def norm(tensors):
        return sum((tensor.double() ** 2).sum() for tensor in tensors).sqrt().item()

    squares = [optimizer.state[p]["exp_avg_sq"].double() for p in parameters]
    rms = (sum(s.sum() for s in squares) / sum(s.numel() for s in squares)).sqrt().item()
    update = norm([p.detach().double() - b for p, b in zip(parameters, before, strict=True)])
    assert reading["grad_norm"] == pytest.approx(norm([p.grad for p in parameters]), rel=1e-5)
    assert reading["param_norm"] == pytest.approx(norm(before), rel=1e-5)
    assert reading["update_norm"] == pytest.approx(update, rel=1e-5)
    assert reading["momentum_norm"] == pytest.approx(
        norm([optimizer.state[p]["exp_avg"] for p in parameters]), rel=1e-5
    )
    assert reading["second_moment_rms"] == pytest.approx(rms, rel=1e-5)


def test_reading_changes_nothing(small_model, small_batch, optimizer_config):
    def parameters_after_three_steps(read):
        model = copy.deepcopy(small_model)
        optimizer, groups = build_optimizer(model, optimizer_config)
        gradients, statistics = statistics_of(optimizer, groups)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            train_step(model, small_batch)
            gradients.clip_and_flag(step)
            if read:
                statistics.before_step()
            optimizer.step()
            if read:
                statistics.after_step()
        return [p.detach().clone() for p in model.parameters()]

    for a, b in zip(parameters_after_three_steps(True), parameters_after_three_steps(False), strict=True):
        assert torch.equal(a, b)


def test_a_group_without_gradient_reads_zero(small_model, optimizer_config):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    small_model.fusion_head.layers[0].weight.grad = torch.ones_like(small_model.fusion_head.layers[0].weight)
    gradients, statistics = statistics_of(optimizer, groups)
    gradients.clip_and_flag(0)
    statistics.before_step()
    optimizer.step()
    readings = statistics.after_step()
    assert readings["image_branch"]["grad_norm"] == readings["image_branch"]["update_norm"] == 0
    assert readings["fusion_head"]["grad_share"] == 1
    assert readings["fusion_head"]["grad_norm"] == pytest.approx(70**0.5)  # 7 x 10 ones


@pytest.mark.parametrize(
    ("name", "options", "momentum", "second"),
    [
        ("SGD", {"momentum": 0.9}, True, False),
        ("SGD", {}, False, False),
        ("RMSprop", {}, False, True),
        ("NAdam", {}, True, True),
    ],
)
def test_moments_are_read_from_any_optimizer_that_keeps_them(small_model, small_batch, name, options, momentum, second):
    optimizer, groups = build_optimizer(small_model, one_group(name, options=options))
    gradients, statistics = statistics_of(optimizer, groups)
    train_step(small_model, small_batch)
    gradients.clip_and_flag(0)
    statistics.before_step()
    optimizer.step()
    reading = statistics.after_step()["all"]
    assert (reading["momentum_norm"] > 0) is momentum
    assert (reading["second_moment_rms"] > 0) is second


def reading(effective_lr=0.1, grad_norm=1.0, update_ratio=1e-3):
    return {"effective_lr": effective_lr, "grad_norm": grad_norm, "update_ratio": update_ratio}


def test_a_starving_group_is_warned_of_once_after_n_readings():
    starvation = Starvation(StatisticsConfig(every=1, starving_update_ratio=1e-5, starving_readings=3))
    sad, fine = {"a": reading(update_ratio=1e-6), "b": reading()}, {"a": reading(), "b": reading()}
    warned = [starvation.look(r) for r in (sad, sad, fine, sad, sad, sad, sad)]
    assert [len(warnings) for warnings in warned] == [0, 0, 0, 0, 0, 1, 0]
    assert warned[5][0].startswith("group a moves by less than 1e-05")


def test_a_group_without_gradient_is_warned_of_and_a_frozen_one_is_not():
    starvation = Starvation(StatisticsConfig(every=1, starving_readings=1))
    warnings = starvation.look({"a": reading(grad_norm=0.0, update_ratio=0.0), "b": reading(0.0, 0.0, 0.0)})
    assert warnings == ["group a gets no gradient: does the loss reach it? (1 readings in a row)"]


def test_ratio_between_two_groups():
    readings = {"a": reading(update_ratio=0.02), "b": reading(update_ratio=0.005)}
    assert ratio_between(readings, "a", "b") == pytest.approx(4)
    assert ratio_between(readings, "a", "nobody") is None
    assert ratio_between({"a": reading(), "b": reading(update_ratio=0.0)}, "a", "b") is None
