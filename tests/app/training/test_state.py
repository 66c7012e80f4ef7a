import copy
import math

import pytest
import torch

from app.learning_rates.rules import Improvement
from app.param_groups.optimizer import build_optimizer, known_optimizers
from app.training.state import STATE, ModelState, OptimizerState, Position, State, raise_if_not_finite
from tests.conftest import one_group


def step_once(model, optimizer, seed=0):
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()


LOSSES = {"training loss": 0.5, "validation loss": 0.5}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda m, o: m.image_branch[0].weight.data.fill_(math.inf),
            "1 tensors of image_branch .* image_branch.0.weight",
        ),
        (lambda m, o: m.image_branch[1].running_var.fill_(math.nan), "image_branch .*first image_branch.1.running_var"),
        (
            lambda m, o: o.state[m.temporal_branch.lstm.bias_hh_l1]["exp_avg_sq"].view(-1)[3].fill_(math.nan),
            "temporal_branch are not finite .first exp_avg_sq of temporal_branch.lstm.bias_hh_l1",
        ),
        (
            lambda m, o: [p.data.fill_(math.nan) for p in (m.image_branch[0].bias, m.fusion_head.layers[0].bias)],
            "2 tensors of image_branch and fusion_head are .* lower the lr of image_branch and fusion_head, or",
        ),
    ],
    ids=["weight", "buffer", "moment", "two groups"],
)
def test_a_state_that_is_not_finite_is_named_by_group_and_step(small_model, optimizer_config, spoil, message):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    raise_if_not_finite(small_model, optimizer, groups, LOSSES, Position(epoch=3, step=66))
    spoil(small_model, optimizer)
    with pytest.raises(FloatingPointError, match=message) as error:
        raise_if_not_finite(small_model, optimizer, groups, LOSSES, Position(epoch=3, step=66))
    assert str(error.value).startswith("after epoch 3, step 66: ")
    assert "last.pt stays that of epoch 2" in str(error.value)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_not_finite_is_named(small_model, optimizer_config, name):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    with pytest.raises(FloatingPointError, match=f"after epoch 1, step 9: the {name} is nan.*no checkpoint yet"):
        raise_if_not_finite(small_model, optimizer, groups, {**LOSSES, name: math.nan}, Position(epoch=1, step=9))


def test_model_state_must_fit_before_anything_changes(small_model):
    state = {name: value.clone() + 1 for name, value in small_model.state_dict().items()}
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    state["fusion_head.layers.0.weight"] = torch.zeros(2, 2)
    del state["image_branch.0.bias"]
    with pytest.raises(
        ValueError, match=r"image_branch.0.bias is missing; fusion_head.layers.0.weight has shape \(2, 2\)"
    ):
        ModelState(small_model).load_state_dict(state)
    assert all(torch.equal(before[name], value) for name, value in small_model.state_dict().items())


def test_moments_follow_their_parameter_also_when_groups_change_places(small_model, optimizer_config):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    state = OptimizerState(optimizer, groups).state_dict()

    reordered = dict(reversed(optimizer_config.groups.items()))
    other, other_groups = build_optimizer(small_model, type(optimizer_config)(name="AdamW", groups=reordered))
    OptimizerState(other, other_groups).load_state_dict(state)
    for parameter in small_model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[parameter][key], value)
            assert other.state[parameter][key] is not value
    step_once(small_model, other, seed=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda moment: torch.zeros(3), "exp_avg of image_branch.0.weight has shape"),
        (lambda moment: moment * float("nan"), "exp_avg of image_branch.0.weight is not finite"),
    ],
)
def test_moments_that_would_crash_or_poison_a_fused_step_are_refused(small_model, optimizer_config, damage, message):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    state = OptimizerState(optimizer, groups).state_dict()
    state["image_branch.0.weight"]["exp_avg"] = damage(state["image_branch.0.weight"]["exp_avg"])
    other, other_groups = build_optimizer(small_model, optimizer_config)
    with pytest.raises(ValueError, match=message):
        OptimizerState(other, other_groups).load_state_dict(state)
    assert not other.state


@pytest.mark.parametrize("name", sorted(known_optimizers()))
def test_every_optimizer_continues_as_if_it_had_not_stopped(small_model, name):
    params = ["*"] if name != "Muon" else ["*lstm.weight*"]
    if name == "Muon":  # takes matrices only
        for parameter_name, parameter in small_model.named_parameters():
            parameter.requires_grad_("lstm.weight" in parameter_name)
    config = one_group(name, lr=0.01, params=params)
    resumed_model = copy.deepcopy(small_model)
    optimizer, groups = build_optimizer(small_model, config)
    step_once(small_model, optimizer)
    resumed_model.load_state_dict(small_model.state_dict())
    resumed, resumed_groups = build_optimizer(resumed_model, config)
    state = OptimizerState(optimizer, groups).state_dict()
    assert OptimizerState(resumed, resumed_groups).load_state_dict(state) == []
    step_once(small_model, optimizer, seed=1)
    step_once(resumed_model, resumed, seed=1)
    for a, b in zip(small_model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {}), ("SGD", {"momentum": 0.9}), ("AdamW", {"amsgrad": True}), ("NAdam", {})]
)
def test_moments_of_another_optimizer_are_left_and_named(small_model, optimizer_config, name, options):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    step_once(small_model, optimizer)
    state = OptimizerState(optimizer, groups).state_dict()
    config = one_group(name, lr=0.01, options=options)
    other, other_groups = build_optimizer(small_model, config)
    afresh = OptimizerState(other, other_groups).load_state_dict(state)
    names = [name for name, _ in small_model.named_parameters()]
    assert afresh == [f"{config.name} for {len(names)} parameters, e.g. {names[0]}"]
    assert not other.state
    step_once(small_model, other)


class Part:
    def __init__(self, value, afresh=()):
        self.value, self.afresh = value, list(afresh)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        return self.afresh


def test_a_position_is_continued_and_its_best_under_another_monitor_starts_afresh():
    position = Position(epoch=3, step=66, best=Improvement("val/accuracy"))
    position.best.take(0.5)
    again = Position(best=Improvement("val/accuracy"))
    assert again.load_state_dict(position.state_dict()) == [] and again == position
    other = Position(best=Improvement("val/macro_f1"))
    assert other.load_state_dict(position.state_dict()) == [
        "best.pt (checkpoint.best.monitor: val/accuracy -> val/macro_f1)"
    ]
    assert (other.epoch, other.step, other.best.best) == (3, 66, None)


def test_a_state_is_one_list_of_parts_saved_and_loaded_alike():
    saved = State(**{name: Part(name) for name in STATE}).state_dict()
    assert list(saved) == list(STATE)
    parts = {name: Part(None, [f"something of {name}"]) for name in STATE}
    assert State(**parts).load_state_dict(saved, "x.pt") == [f"something of {name}" for name in STATE]
    assert {name: part.value for name, part in parts.items()} == dict(zip(STATE, STATE, strict=True))
    with pytest.raises(TypeError, match="expected the parts position, model"):
        State(position=Part(0))


def test_a_part_of_another_form_is_named_with_the_file():
    parts = {name: Part(name) for name in STATE}
    saved = State(**parts).state_dict()
    saved["train_step"] = {"other": 1}
    with pytest.raises(ValueError, match=r"checkpoint x.pt: its part train_step has another form \(KeyError"):
        State(**parts).load_state_dict(saved, "x.pt")
