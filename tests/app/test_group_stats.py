import copy

import pytest
import torch

from app.group_stats import STATISTICS, GroupStatistics
from app.param_groups import build_optimizer


def train_step(model, batch):
    output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
    losses = [
        torch.nn.functional.cross_entropy(o, batch["label"]) for o in (output.logits, *output.unimodal_logits.values())
    ]
    sum(losses).backward()


def test_equal_to_a_float64_reference(small_model, small_batch, optimizer_config):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    statistics = GroupStatistics(groups)
    for _ in range(3):  # moments included
        optimizer.zero_grad()
        train_step(small_model, small_batch)
        before = {g.name: [p.detach().double() for p in g.parameters.values()] for g in groups}
        statistics.before_step()
        optimizer.step()
        readings = statistics.after_step()

    def norm(tensors):
        return sum((t.double() ** 2).sum() for t in tensors).sqrt().item()

    total = sum(norm([p.grad for p in g.parameters.values()]) ** 2 for g in groups)
    for group in groups:
        now = list(group.parameters.values())
        grad_norm = norm([p.grad for p in now])
        param_norm = norm(before[group.name])
        update_norm = norm([p.detach().double() - b for p, b in zip(now, before[group.name], strict=True)])
        expected = [grad_norm, param_norm, update_norm, update_norm / param_norm, grad_norm**2 / total]
        assert [readings[group.name][s] for s in STATISTICS] == pytest.approx(expected, rel=1e-5)


def test_reading_changes_nothing(small_model, small_batch, optimizer_config):
    def parameters_after_three_steps(read):
        model = copy.deepcopy(small_model)
        optimizer, groups = build_optimizer(model, optimizer_config)
        statistics = GroupStatistics(groups)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            train_step(model, small_batch)
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
    statistics = GroupStatistics(groups)
    statistics.before_step()
    optimizer.step()
    readings = statistics.after_step()
    assert readings["image_branch"]["grad_norm"] == readings["image_branch"]["update_norm"] == 0
    assert readings["fusion_head"]["grad_share"] == 1
    assert readings["fusion_head"]["grad_norm"] == pytest.approx(70**0.5)  # 7 x 10 ones
