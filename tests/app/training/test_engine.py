import copy
import math
import random
import time
from dataclasses import replace

import numpy
import pytest
import torch

from app.evaluation.metrics import ClassificationMetrics
from app.learning_rates.learning_rates import LearningRates
from app.param_groups.freezing import Freezing
from app.param_groups.groups import build_optimizer
from app.training import engine
from app.training.engine import bf16_slowdown, choose_device, predict, slow_precision, train_one_epoch, validate
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics

CPU = {"device": torch.device("cpu"), "precision": "fp32"}


class OneEpoch(list):
    """Stands for a loader: batches, and a sampler that takes the epoch."""

    class sampler:
        epoch = 0


@pytest.fixture
def trained(small_batch, optimizer_config, learning_rates_of):
    def train(model, *, batches=4, log_every=1, epoch=0, config=optimizer_config, log=lambda *values: None):
        optimizer, groups = build_optimizer(model, config)
        gradients = Gradients(optimizer, groups, config.clip_norm)
        parts = [Freezing(model, groups), gradients, GroupStatistics(optimizer, groups, gradients)]
        loader = OneEpoch([small_batch] * batches)
        arguments = {"epoch": epoch, "step": 0, "seed": 0, "log_every": log_every, "log": log, **CPU}
        return train_one_epoch(model, loader, optimizer, learning_rates_of(groups), *parts, **arguments)

    return train


def test_logs_on_logging_steps_only_with_the_groups_statistics(small_model, trained):
    calls = []
    step, loss = trained(small_model, batches=7, log_every=3, log=lambda *values: calls.append(values))
    assert step == 7 and math.isfinite(loss)
    assert [step for step, _, _ in calls] == [3, 6]
    assert calls[0][1].keys() == {"loss", "accuracy"}
    assert set(calls[0][2]) == {"image_branch", "temporal_branch", "fusion_head", "unimodal_heads"}


def test_the_epochs_loss_is_the_mean_over_its_steps_whatever_is_logged(small_model, trained):
    calls = []
    _, loss = trained(copy.deepcopy(small_model), batches=6, log_every=1, log=lambda *values: calls.append(values))
    assert loss == pytest.approx(sum(values["loss"] for _, values, _ in calls) / 6, rel=1e-6)
    assert trained(small_model, batches=6, log_every=4)[1] == loss


def test_schedules_get_the_fraction_of_the_epoch(small_model, small_batch, trained, monkeypatch):
    asked = []
    monkeypatch.setattr(LearningRates, "set", lambda self, *position: asked.append(position))
    trained(small_model, batches=4, epoch=3)
    assert asked == [(0, 3.0), (1, 3.25), (2, 3.5), (3, 3.75)]


def test_training_is_the_same_twice_whatever_was_drawn_before(small_model, trained):
    models = [copy.deepcopy(small_model) for _ in range(2)]
    for i, model in enumerate(models):
        torch.rand(i)
        trained(model)
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(a, b)


def test_a_frozen_group_is_frozen_in_its_epochs_whatever_train_mode_says(small_model, optimizer_config, trained):
    groups = dict(optimizer_config.groups)
    groups["image_branch"] = replace(groups["image_branch"], freeze_until=2)
    config = replace(optimizer_config, groups=groups)
    before = small_model.image_branch.state_dict()
    for epoch, still in ((0, True), (1, True), (2, False)):
        model = copy.deepcopy(small_model)
        trained(model, epoch=epoch, config=config)
        now = model.image_branch.state_dict()
        assert all(torch.equal(before[name], now[name]) == still for name in before), epoch


def test_detached_heads_change_nothing_in_the_rest_of_the_model(small_model, small_batch, trained):
    with_heads, without = copy.deepcopy(small_model), copy.deepcopy(small_model)
    for parameter in without.unimodal_heads.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    for model in (with_heads, without):
        trained(model)
    for name in ("image_branch", "temporal_branch", "fusion_head"):
        for a, b in zip(getattr(with_heads, name).parameters(), getattr(without, name).parameters(), strict=True):
            assert torch.equal(a, b)


def test_heads_with_weight_train_the_branches(small_model, trained):
    plain, weighted = copy.deepcopy(small_model), copy.deepcopy(small_model)
    weighted.unimodal_gradient = 0.5
    for model in (plain, weighted):
        trained(model)
    assert not torch.equal(plain.image_branch[0].weight, weighted.image_branch[0].weight)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_changes_no_weight(small_model, small_batch, trained, log_every):
    before = copy.deepcopy(dict(small_model.named_parameters()))
    small_batch["image"][0] = float("inf")
    with pytest.raises(FloatingPointError, match="gradient of image_branch, .* was not finite at step 1;"):
        trained(small_model, log_every=log_every)
    assert all(torch.equal(before[name], p) for name, p in small_model.named_parameters())


def test_no_read_back_from_the_device_on_steps_that_log_nothing(small_model, trained, monkeypatch):
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, _f=original, _n=name, **k: (reads.append(_n), _f(*a, **k))[1]
        )
    trained(small_model, batches=9, log_every=100)
    assert reads == ["tolist", "item"]  # Gradients.check and the epoch's loss, once, at its end


@torch.no_grad()
def split_into(batch, sizes, extra_padding=0):
    """The same samples as batches of `sizes`, each cut to its own longest sequence plus padding."""
    batches, start = OneEpoch(), 0
    for size in sizes:
        part = {name: value[start : start + size] for name, value in batch.items()}
        longest = int(part["length"].max())
        padding = torch.full((size, extra_padding, batch["sequence"].shape[2]), float("nan"))
        part["sequence"] = torch.cat([part["sequence"][:, :longest], padding], dim=1)
        batches.append(part)
        start += size
    return batches


@pytest.mark.parametrize(("sizes", "padding"), [([6], 13), ([1] * 6, 0), ([2, 4], 3)])
def test_padding_and_batch_size_do_not_change_a_samples_logits(small_model, small_batch, sizes, padding):
    reference = torch.cat([output.logits for _, output in predict(small_model, [small_batch], **CPU)])
    batches = split_into(small_batch, sizes, padding)
    logits = torch.cat([output.logits for _, output in predict(small_model, batches, **CPU)])
    torch.testing.assert_close(logits, reference, atol=1e-6, rtol=1e-5)


def test_batch_order_does_not_change_a_samples_logits(small_model, small_batch):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: value[order] for name, value in small_batch.items()}
    (_, a), (_, b) = (next(predict(small_model, [batch], **CPU)) for batch in (small_batch, shuffled))
    torch.testing.assert_close(a.logits[order], b.logits, atol=1e-6, rtol=1e-5)


def test_validation_leaves_the_model_as_it_is(small_model, small_batch):
    before = copy.deepcopy(small_model.state_dict())
    metrics = ClassificationMetrics(3, ["image_branch", "temporal_branch"])
    first = validate(small_model, [small_batch], metrics, **CPU)
    assert validate(small_model, [small_batch], metrics, **CPU) == first  # counters start afresh
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available on this machine; use auto or one of"):
            choose_device("cuda")


def test_bf16_trains_and_predicts(small_model, small_batch, trained, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    before = copy.deepcopy(small_model.fusion_head.state_dict())
    trained(small_model)
    assert all(p.dtype == torch.float32 for p in small_model.parameters())
    assert any(not torch.equal(before[name], value) for name, value in small_model.fusion_head.state_dict().items())
    metrics = ClassificationMetrics(3, ["image_branch", "temporal_branch"])
    assert 0 < validate(small_model, [small_batch], metrics, **CPU)["loss"] < 10
    (_, output) = next(predict(small_model, [small_batch], **CPU))
    assert output.logits.dtype == torch.bfloat16


def test_predict_yields_outside_autocast(small_model, small_batch, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    for _, output in predict(small_model, [small_batch] * 2, **CPU):
        assert not torch.is_autocast_enabled("cpu")
        assert output.logits.dtype == torch.bfloat16  # the model itself ran inside
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "precision", "slowdown", "said"),
    [
        ("cpu", "bf16", 44.04, "bf16 takes 44.0 times as long as fp32 on this CPU"),
        ("cpu", "bf16", 2.0, "bf16 takes 2.0 times as long"),
        ("cpu", "bf16", 1.9, None),
        ("cpu", "bf16", 0.6, None),
        ("cpu", "fp32", 44.0, None),
        ("cuda", "bf16", 44.0, None),
    ],
)
def test_bf16_that_is_clearly_slower_is_said(monkeypatch, device, precision, slowdown, said):
    monkeypatch.setattr(engine, "bf16_slowdown", lambda: slowdown)
    text = slow_precision(torch.device(device), precision)
    assert text is None if said is None else text.startswith(said)


def test_the_probe_of_bf16_is_short_and_changes_no_random_state_and_no_training(small_model, trained, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    probed, plain = copy.deepcopy(small_model), copy.deepcopy(small_model)
    torch.manual_seed(0)
    trained(plain)
    torch.manual_seed(0)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    bf16_slowdown()  # its first call prepares kernels
    start = time.process_time()
    assert bf16_slowdown() > 0
    assert time.process_time() - start < 1.5 * torch.get_num_threads()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate() and (states[2] == numpy.random.get_state()[1]).all()
    trained(probed)
    for a, b in zip(probed.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_probe_measures_bf16_against_fp32(monkeypatch):
    """With bf16 made slow by 20 ms a run, the ratio says so."""
    original = engine.autocast

    def slow(device, precision):
        if precision == "bf16":
            time.sleep(0.02)
        return original(device, precision)

    plain = bf16_slowdown()
    monkeypatch.setattr(engine, "autocast", slow)
    assert bf16_slowdown() > plain
