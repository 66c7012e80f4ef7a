"""Training where samples, or whole batches, lack their image or their sequence."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.learning_rates.best_weights import BestWeights
from app.param_groups.freezing import Freezing
from app.param_groups.optimizer import known_optimizers
from app.training import objective
from app.training.state import OptimizerState, Position, raise_if_not_finite
from data.loaders import to_device
from models.fusion import Late
from models.fusion_classifier import Gates, Output
from tests.app.training.test_step import train_step_of
from tests.conftest import one_group, replace

BRANCHES = ("image_branch", "temporal_branch")
WITH_MEMORY = {"SGD": {"options": {"momentum": 0.9, "nesterov": True}}, "RMSprop": {"options": {"momentum": 0.9}}}


def lacking(batch, **rows):
    """The batch without the image or the sequence of those rows, which are NaN then."""
    batch = {name: tensor.clone() for name, tensor in batch.items()}
    for column, name in enumerate(("image", "sequence")):
        batch["present"][rows.get(name, []), column] = False
        batch[name][rows.get(name, [])] = float("nan")
    return batch


def values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moments(step):
    """By parameter name; copies."""
    return copy.deepcopy(OptimizerState(step.optimizer, step.statistics.groups).state_dict())


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("name", sorted(set(known_optimizers()) - {"Muon"}))  # Muon takes matrices only
def test_an_absent_vector_moves_in_steps_only_that_need_it(small_model, small_batch, learning_rates_of, name):
    """Neither weight decay nor a moment moves it in others, and until the first it is 0, and so are its moments."""
    config = one_group(name, lr=0.01, clip_norm=1.0, weight_decay=0.1, **WITH_MEMORY.get(name, {}))
    step = train_step_of(small_model, config, learning_rates_of, steps_per_epoch=9)
    step.start_epoch(0)
    absent = small_model.fusion_head.absent
    for number in range(2):
        reading = step(small_batch, number)
    assert all(math.isfinite(value) for value in reading.groups["all"].values())
    for vector in absent.values():
        assert not vector.any()
        assert not any(torch.as_tensor(moment).any() for moment in step.optimizer.state.get(vector, {}).values())

    step(lacking(small_batch, sequence=[1, 4]), 2)
    assert absent["temporal_branch"].any() and not absent["image_branch"].any()
    kept = [values(absent), moments(step)]
    step(small_batch, 3)
    assert changed(kept[0], values(absent)) == set()
    for key, moment in kept[1].get("fusion_head.absent.temporal_branch", {}).items():
        now = moments(step)["fusion_head.absent.temporal_branch"][key]
        assert torch.equal(moment, now) if isinstance(moment, torch.Tensor) else moment == now
    step.end_epoch()


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_parameter_without_moments_is_saved_resumed_and_restored(small_model, small_batch, learning_rates_of, name):
    """As are the others; a resumed training takes the same path, to the bit."""
    config = one_group(name, lr=0.01, weight_decay=0.1, **WITH_MEMORY.get(name, {}))
    rule = {"groups": ["all"], "monitor": "val/loss", "rule": "plateau", "factor": 0.5, "patience": 0}
    settings = {"monitors": ["val/loss"], "reductions": [{**rule, "restore_best": True}]}

    def make(model):
        return train_step_of(model, config, lambda groups: learning_rates_of(groups, **settings), steps_per_epoch=9)

    straight = make(small_model)
    groups = straight.statistics.groups
    best = BestWeights(straight.optimizer, groups, Freezing(small_model, groups), straight.learning_rates)
    straight.start_epoch(0)
    for number, batch in enumerate([small_batch, lacking(small_batch, image=[0, 3])]):
        straight(batch, number)
        raise_if_not_finite(small_model, straight.optimizer, groups, {}, Position(1, number + 1))
    best.keep(straight.learning_rates.after_validation({"val/loss": 1.0}, epoch=1, step=2))
    at_best, saved = values(small_model), moments(straight)
    assert "fusion_head.absent.image_branch" in saved and "fusion_head.absent.temporal_branch" not in saved

    resumed = make(copy.deepcopy(small_model))
    resumed.start_epoch(0)
    assert OptimizerState(resumed.optimizer, resumed.statistics.groups).load_state_dict(saved) == []
    rest = [small_batch, lacking(small_batch, image=[5]), lacking(small_batch, sequence=[2])]
    for number, batch in enumerate(rest, start=2):
        for step in (straight, resumed):
            step(batch, number)
    assert changed(values(small_model), values(resumed.model)) == set()

    events = best.keep(straight.learning_rates.after_validation({"val/loss": 2.0}, epoch=2, step=5))
    assert events and best.restore()
    assert changed(at_best, values(small_model)) == set()
    straight(small_batch, 5)
    assert torch.equal(at_best["fusion_head.absent.image_branch"], small_model.fusion_head.absent["image_branch"])


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize(("missing", "branch"), [("image", "image_branch"), ("sequence", "temporal_branch")])
def test_a_batch_that_wholly_lacks_an_input_trains_the_rest(
    small_model, small_batch, learning_rates_of, with_groups, name, missing, branch
):
    no_betas = {} if name == "AdamW" else dict.fromkeys(("betas",))
    config = with_groups(dict.fromkeys((*BRANCHES, "fusion_head", "unimodal_heads"), no_betas), name=name)
    small_model.gates = dict.fromkeys(BRANCHES, Gates(1.0, 0.5))
    step = train_step_of(small_model, config, learning_rates_of)
    step.start_epoch(0)
    step(small_batch, 0)
    before, kept = values(small_model), moments(step)
    reading = step(lacking(small_batch, **{missing: slice(None)}), 1)

    still = (f"{branch}.", f"unimodal_heads.{branch}.")
    other = BRANCHES[1 - BRANCHES.index(branch)]
    unmoved = {n for n in before if n.startswith(still)} | {f"fusion_head.absent.{other}"}
    by_rounding = {"image_branch.0.bias"}  # a BatchNorm follows, so its gradient is 0 but for rounding
    assert changed(before, values(small_model)) - by_rounding == set(before) - unmoved - by_rounding
    for parameter in unmoved & kept.keys():
        assert changed(kept[parameter], moments(step)[parameter]) == set()
    assert all(math.isfinite(value) for group in reading.groups.values() for value in group.values())
    assert 0 < reading.loss < 10
    assert reading.groups[branch]["grad_norm"] == reading.groups[branch]["update_norm"] == 0
    assert reading.groups[branch]["zero_grad_share"] == 0
    step(small_batch, 2)
    step.end_epoch()


def test_a_branchs_loss_is_the_mean_over_the_samples_that_have_its_input():
    torch.manual_seed(0)
    logits, image, temporal = torch.randn(3, 4, 3).unbind()
    label = torch.tensor([0, 1, 2, 1])
    present = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    output = Output(logits, {}, dict(zip(BRANCHES, (image, temporal), strict=True)))
    found = objective.losses(output, {"label": label, "present": present}, objective.Objective())
    torch.testing.assert_close(found["loss"], cross_entropy(logits, label))
    torch.testing.assert_close(found["image_branch/loss"], cross_entropy(image[[0, 1, 3]], label[[0, 1, 3]]))
    torch.testing.assert_close(found["temporal_branch/loss"], cross_entropy(temporal[[1, 2]], label[[1, 2]]))

    found = objective.losses(
        output, {"label": label, "present": torch.tensor([[True, False]] * 4)}, objective.Objective()
    )
    assert found["temporal_branch/loss"] == 0
    torch.testing.assert_close(objective.total(found), cross_entropy(logits, label) + cross_entropy(image, label))


@pytest.mark.parametrize("rows", [[], [1, 4], slice(None)])
def test_a_step_never_asks_the_device_for_a_value(small_model, small_batch, rows):
    """On the device `meta` there is none: whatever would wait for a GPU raises."""
    meta = torch.device("meta")
    batch = to_device(lacking(small_batch, image=rows, sequence=rows), meta)
    assert {name: tensor.device.type for name, tensor in batch.items() if name != "index"} == {
        "image": "meta", "sequence": "meta", "length": "meta", "present": "cpu", "label": "meta"
    }  # fmt: skip
    model = small_model.to(meta)
    output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
    objective.total(objective.losses(output, batch, objective.Objective())).backward()
    assert output.logits.shape == (6, 3)
    gets_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ("image_branch.0.weight" in gets_gradient) == (rows != slice(None))
    assert ("fusion_head.absent.image_branch" in gets_gradient) == (rows != [])


def test_a_batch_without_an_input_for_any_part_that_trains_changes_nothing(
    small_model, small_batch, learning_rates_of, with_groups
):
    small_model.fusion_head = Late(small_model.fusion_head.dims, 3)
    small_model.gates = dict.fromkeys(BRANCHES, Gates(0.0, 1.0))
    config = with_groups({})
    config = replace(config, groups={name: g for name, g in config.groups.items() if name != "fusion_head"})
    step = train_step_of(small_model, config, learning_rates_of)
    step.start_epoch(0)
    step(small_batch, 0)
    before = values(small_model)
    reading = step(lacking(small_batch, image=slice(None), sequence=slice(None)), 1)
    assert changed(before, values(small_model)) == set() and math.isfinite(reading.loss)
