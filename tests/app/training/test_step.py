import copy
import math
import random

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy

from app.evaluation.predictions import predict
from app.evaluation.scores import metrics_of
from app.learning_rates.learning_rates import LearningRates
from app.param_groups.freezing import Freezing
from app.param_groups.optimizer import build_optimizer
from app.randomness import seed_device
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics
from app.training.objective import Objective
from app.training.precision import bf16_slowdown
from app.training.step import TrainStep
from models.fusion_classifier import Gates
from tests.conftest import replace

CPU = {"device": torch.device("cpu"), "precision": "fp32"}


def train_step_of(model, config, learning_rates_of, **settings) -> TrainStep:
    optimizer, groups = build_optimizer(model, config)
    gradients = Gradients(optimizer, groups, config.clip_norm)
    statistics, freezing = GroupStatistics(optimizer, groups, gradients), Freezing(model, groups)
    objective = settings.pop("objective", Objective())
    parts = [gradients, statistics, freezing, learning_rates_of(groups), objective]
    return TrainStep(model, *parts, **{"steps_per_epoch": 4, "read_every": 1, "seed": 0, **CPU, **settings})


@pytest.fixture
def trained(small_batch, optimizer_config, learning_rates_of):
    """Trains for an epoch; returns the steps finished and the epoch's loss. log: takes (step, reading)."""

    def train(model, *, batches=4, log_every=1, epoch=0, config=optimizer_config, log=lambda *values: None):
        step = train_step_of(model, config, learning_rates_of, steps_per_epoch=batches, read_every=log_every)
        step.learning_rates.start_epoch(epoch=epoch, step=0)
        step.start_epoch(epoch)
        for number in range(batches):
            if reading := step(small_batch, number):
                log(number + 1, reading)
        return batches, step.end_epoch()

    return train


def test_logs_on_logging_steps_only_with_the_groups_statistics(small_model, trained):
    calls = []
    step, loss = trained(small_model, batches=7, log_every=3, log=lambda *values: calls.append(values))
    assert step == 7 and math.isfinite(loss)
    assert [step for step, _ in calls] == [3, 6]
    assert 0 < calls[0][1].loss < 10 and 0 <= calls[0][1].accuracy <= 1
    assert set(calls[0][1].groups) == {"image_branch", "temporal_branch", "fusion_head", "unimodal_heads"}


def test_the_epochs_loss_is_the_mean_over_its_steps_whatever_is_logged(small_model, trained):
    calls = []
    _, loss = trained(copy.deepcopy(small_model), batches=6, log_every=1, log=lambda *values: calls.append(values))
    assert loss == pytest.approx(sum(reading.loss for _, reading in calls) / 6, rel=1e-6)
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


def test_a_frozen_group_is_frozen_in_its_epochs_whatever_train_mode_says(small_model, with_groups, trained):
    config = with_groups({"image_branch": {"freeze_until": 2}})
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


def test_training_minimises_the_objective_of_torch(small_model, small_batch, optimizer_config, learning_rates_of):
    """Of the fusion and of each branch's own head, for the samples that have its input."""
    small_batch["present"][1:4, 1] = False
    weights, smoothing = torch.tensor([0.2, 1.0, 3.0]), 0.1
    step = train_step_of(small_model, optimizer_config, learning_rates_of, objective=Objective(weights, smoothing))
    twin = copy.deepcopy(small_model).train()
    step.start_epoch(0)
    reading = step(small_batch, 0)
    inputs = (small_batch[name] for name in ("image", "sequence", "length", "present"))
    output = twin(*inputs, before_part=lambda part: seed_device(torch.device("cpu"), "dropout", part, 0, 0))
    settings, label, there = {"weight": weights, "label_smoothing": smoothing}, small_batch["label"], [0, 4, 5]
    fusion = cross_entropy(output.logits, label, **settings)
    image = cross_entropy(output.unimodal_logits["image_branch"], label, **settings)
    temporal = cross_entropy(output.unimodal_logits["temporal_branch"][there], label[there], **settings)
    (fusion + image + temporal).backward()
    assert reading.loss == pytest.approx(fusion.item(), rel=1e-6)
    for (name, a), b in zip(small_model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_heads_whose_gates_are_open_train_the_branches(small_model, trained):
    plain, weighted = copy.deepcopy(small_model), copy.deepcopy(small_model)
    weighted.gates = dict.fromkeys(plain.gates, Gates(1.0, 0.5))
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
    assert reads == ["tolist", "item"]  # Gradients.raise_if_not_finite and the epoch's loss, once, at its end


def test_bf16_trains_and_predicts(small_model, small_batch, trained, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    before = copy.deepcopy(small_model.fusion_head.state_dict())
    trained(small_model)
    assert all(p.dtype == torch.float32 for p in small_model.parameters())
    assert any(not torch.equal(before[name], value) for name, value in small_model.fusion_head.state_dict().items())
    predictions = predict(small_model, [small_batch], [*"abc"], **CPU)
    assert 0 < metrics_of(predictions, Objective())["loss"] < 10
    assert torch.equal(predictions.logits, predictions.logits.bfloat16().float())  # as it was in bf16


def test_the_probe_of_bf16_changes_no_random_state_and_no_training(small_model, small_batch, trained, monkeypatch):
    monkeypatch.setitem(CPU, "precision", "bf16")
    probed, plain = copy.deepcopy(small_model), copy.deepcopy(small_model)
    torch.manual_seed(0)
    trained(plain)
    torch.manual_seed(0)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    probed.train()
    assert bf16_slowdown(probed, small_batch, training=True) > 0
    assert probed.training and all(parameter.grad is None for parameter in probed.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate() and (states[2] == numpy.random.get_state()[1]).all()
    trained(probed)
    for a, b in zip(probed.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_stopped_within_an_epoch_reads_on_as_if_it_had_not_been(
    small_model, small_batch, optimizer_config, learning_rates_of
):
    """The running sums and counts are its state; weights and moments are saved apart."""
    optimizer_config = replace(optimizer_config, clip_norm=1e-3)
    settings = {"steps_per_epoch": 6, "read_every": 4}
    straight = train_step_of(small_model, optimizer_config, learning_rates_of, **settings)
    straight.start_epoch(0)
    for number in range(2):
        assert straight(small_batch, number) is None
    resumed = train_step_of(copy.deepcopy(small_model), optimizer_config, learning_rates_of, **settings)
    resumed.start_epoch(0)
    names = dict(zip(small_model.parameters(), resumed.model.parameters(), strict=True))
    for parameter, twin in names.items():
        resumed.optimizer.state[twin] = copy.deepcopy(straight.optimizer.state[parameter])
    state = straight.state_dict()
    assert state["batches"] == state["summed"] == state["gradients"]["steps"] == 2
    assert sum(state["gradients"]["clipped_steps"].values()) > 0
    resumed.load_state_dict(copy.deepcopy(state))
    readings = [[step(small_batch, number) for number in range(2, 6)] for step in (straight, resumed)]
    assert readings[0] == readings[1] and readings[0][1] is not None
    assert straight.end_epoch() == resumed.end_epoch()
    assert straight.state_dict() == resumed.state_dict()
