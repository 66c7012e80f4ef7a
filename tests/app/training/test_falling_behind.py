import copy

import pytest
import torch

from app.evaluation.metrics import ClassificationMetrics
from app.training.balance import BalanceConfig, GatesConfig, GradientsConfig
from app.training.falling_behind import FallingBehind
from app.training.objective import Objective
from models.fusion_classifier import Gates
from tests.app.training.test_step import CPU, train_step_of

BRANCHES = ("image_branch", "temporal_branch")
POOR = {"accuracy": 0.9, "image_branch/accuracy": 0.8, "temporal_branch/accuracy": 0.4}


def watching(model, optimizer, **config) -> FallingBehind:
    return FallingBehind(model, optimizer, BalanceConfig(**config), Objective(), seed=0, **CPU)


def run_epoch(step, watch, batch, epoch, batches=4):
    step.start_epoch(epoch)
    watch.start_epoch(epoch)
    for number in range(epoch * batches, (epoch + 1) * batches):
        step(batch, number)
        watch(batch, number)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_the_copy_learns_as_a_branch_apart_and_the_run_as_if_there_were_none(
    small_model, small_batch, with_groups, learning_rates_of, branch, name
):
    changes = {} if name == "AdamW" else dict.fromkeys((*BRANCHES, "fusion_head", "unimodal_heads"), {"betas": None})
    config = with_groups(changes, name=name)
    alone, apart = copy.deepcopy(small_model), copy.deepcopy(small_model)
    for model in (small_model, alone, apart):
        # In the warm-up, the lr is another at each step.
        step = train_step_of(model, config, lambda groups: learning_rates_of(groups, warmup_steps=20))
        watch = watching(model, step.optimizer)
        run_epoch(step, watch, small_batch, 0)
        if model is small_model:
            watch.suspects = [branch]
        if model is apart:
            model.gates = dict.fromkeys(BRANCHES, Gates(0.0, 1.0))
        run_epoch(step, watch, small_batch, 1)
        if model is small_model:
            copied = watch.copies[branch].model
    for name, value in small_model.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    own = [n for n in apart.state_dict() if n.startswith((f"{branch}.", f"unimodal_heads.{branch}."))]
    assert len(own) > 3
    for name in own:
        assert torch.equal(copied.state_dict()[name], apart.state_dict()[name]), name
        if name.endswith("weight") and "1." not in name:
            assert not torch.equal(copied.state_dict()[name], small_model.state_dict()[name]), name


def test_the_copy_shares_the_other_parts_with_the_model(small_model, small_batch, optimizer_config, learning_rates_of):
    step = train_step_of(small_model, optimizer_config, learning_rates_of)
    watch = watching(small_model, step.optimizer)
    watch.suspects = ["temporal_branch"]
    watch.start_epoch(1)
    copied = watch.copies["temporal_branch"].model
    assert copied.image_branch is small_model.image_branch and copied.fusion_head is small_model.fusion_head
    assert copied.unimodal_heads["image_branch"] is small_model.unimodal_heads["image_branch"]
    assert copied.temporal_branch is not small_model.temporal_branch


@pytest.fixture
def warnings_of(small_model, optimizer_config, learning_rates_of):
    """[(epoch, warning)] of a run whose validations are all POOR, and whose copies reach `alone`."""
    step = train_step_of(small_model, optimizer_config, learning_rates_of)

    def warn(alone, *, val=POOR, epochs=9, samples=450, freeze=False, **config):
        watch, found = watching(small_model, step.optimizer, **config), []
        of_copy = dict.fromkeys(("image_branch/accuracy", "temporal_branch/accuracy"), alone)
        for epoch in range(epochs):
            small_model.temporal_branch.requires_grad_(not freeze)
            watch.start_epoch(epoch)
            found += [
                (epoch + 1, line)
                for line in watch.after_validation(val, lambda model: of_copy, dict.fromkeys(BRANCHES, samples))
            ]
            state = watch.state_dict()
            watch = watching(small_model, step.optimizer, **config)
            watch.load_state_dict(state)  # as a resumed run
        return found

    return warn


def test_it_warns_once_in_epoch_2_with_the_remedy(warnings_of):
    ((epoch, line),) = warnings_of(0.6)
    assert epoch == 2
    assert line.startswith("temporal_branch falls behind: on its own it has a validation accuracy of 0.40; a copy ")
    assert "has 0.60" in line and "set balance.gradients.temporal_branch.own=1 (configs/examples/balanced.yaml)" in line
    both = GradientsConfig(temporal_branch=GatesConfig(own=1.0))
    assert "set balance.gradients.temporal_branch.fusion=0" in warnings_of(0.6, gradients=both)[0][1]


def test_it_looks_in_epochs_2_4_8(warnings_of):
    late = iter([0.4, 0.6])

    class Alone(float):
        """The accuracy of the copy: no better the first time."""

        def __sub__(self, other):
            return next(late) - other

    ((epoch, _),) = warnings_of(Alone(0.6))
    assert epoch == 4


@pytest.mark.parametrize(
    "change",
    [
        {"alone": 0.46},  # gains less than 2 * sqrt(0.5 / 450) = 0.067
        {"alone": 0.44, "samples": 10**6},  # gains less than 0.05
        {"alone": 0.9, "samples": 0},
        {"alone": 0.6, "samples": 40},  # 2 * sqrt(0.5 / 40) = 0.22: chance may do that
        {"alone": 0.6, "val": POOR | {"accuracy": 0.64}},  # the fusion is little better
        {"alone": 0.6, "val": POOR | {"temporal_branch/accuracy": float("nan")}},
        {"alone": float("nan")},
        {"alone": 0.6, "epochs": 1},
        {"alone": 0.6, "freeze": True},
        {"alone": 0.6, "watch": False},
        {"alone": 0.6, "gradients": GradientsConfig(temporal_branch=GatesConfig(fusion=0.0, own=1.0))},
    ],
    ids=str,
)
def test_it_is_silent(warnings_of, change):
    assert warnings_of(**change) == []


def test_it_is_silent_about_a_branch_that_has_caught_up(small_model, optimizer_config, learning_rates_of):
    step = train_step_of(small_model, optimizer_config, learning_rates_of)
    watch = watching(small_model, step.optimizer)
    better = POOR | {"temporal_branch/accuracy": 0.66}
    for epoch, val in enumerate((POOR, better)):
        watch.start_epoch(epoch)
        assert (
            watch.after_validation(val, lambda model: {"temporal_branch/accuracy": 0.9}, {"temporal_branch": 450}) == []
        )


@pytest.mark.parametrize(
    "change",
    [{"watch": False}, {"gradients": GradientsConfig(temporal_branch=GatesConfig(fusion=0.0, own=1.0))}],
    ids=str,
)
def test_a_resume_that_turns_it_off_or_decouples_the_branch_does_so_at_once(
    small_model, optimizer_config, learning_rates_of, change
):
    step = train_step_of(small_model, optimizer_config, learning_rates_of)
    watch = watching(small_model, step.optimizer, **change)
    watch.load_state_dict({"suspects": ["temporal_branch"], "warned": []})
    watch.start_epoch(1)
    assert watch.copies == {}


def test_it_counts_the_samples_that_have_the_branchs_input(small_model, small_batch):
    metrics = ClassificationMetrics(["a", "b", "c"], [*BRANCHES], Objective())
    small_batch["present"][:4, 1] = False
    metrics.update(small_model(*(small_batch[n] for n in ("image", "sequence", "length", "present"))), small_batch)
    assert metrics.samples_of_branches() == {"image_branch": 6, "temporal_branch": 2}
