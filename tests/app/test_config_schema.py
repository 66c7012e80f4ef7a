import copy

import pytest

from app.config import parse_config

PLATEAU = {"groups": ["image_branch"], "monitor": "val/loss", "rule": "plateau", "factor": 0.1, "patience": 1}
THRESHOLD = {"groups": ["image_branch"], "monitor": "val/loss", "rule": "threshold", "factor": 0.1, "above": 0.5}
EVERY = PLATEAU | {"groups": ["image_branch", "temporal_branch", "fusion_head", "unimodal_heads"]}


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"image_branch": None, "temporal_branch": None}, "model: image_branch and temporal_branch are both"),
        ("learning_rates", {"reductions": [without(PLATEAU, "patience")]}, "reductions[0].patience: missing; add it"),
        ("learning_rates", {"reductions": [PLATEAU | {"above": 1.0}]}, "reductions[0].above: belongs to the rule thr"),
        ("learning_rates", {"reductions": [without(THRESHOLD, "above")]}, "needs one of above and below"),
        ("learning_rates", {"reductions": [THRESHOLD | {"below": 0.1}]}, "needs one of above and below"),
        ("learning_rates", {"reductions": [THRESHOLD | {"patience": 1}]}, "patience: belongs to the rule plateau"),
        ("learning_rates", {"reductions": [PLATEAU | {"min_lr": 0.0005}]}, "min_lr: found 0.0005, must be below"),
        ("learning_rates", {"schedules": {"image": {"name": "cosine"}}}, "unknown group 'image'"),
        ("learning_rates", {"schedules": {"image_branch": {"name": "step"}}}, "schedule step, which needs both"),
        ("learning_rates", {"schedules": {"image_branch": {"name": "linear", "factor": 0.5}}}, "schedule step, which"),
        (
            "learning_rates",
            {"schedules": {"image_branch": {"name": "cos"}}},
            "expected one of constant, cosine, linear",
        ),
        (
            "learning_rates",
            {"reductions": [PLATEAU], "stop_when_exhausted": True},
            "no reduction names temporal_branch",
        ),
        ("learning_rates", {"reductions": [EVERY], "stop_when_exhausted": True}, "has no min_lr above 0"),
        ("image_branch", {"layer_decay": 0.0}, "layer_decay: found 0.0, must be > 0 and <= 1"),
        ("image_branch", {"clip_norm": -1.0}, "clip_norm: found -1.0, must be > 0"),
        ("image_branch", {"unfreeze_warmup_steps": 3}, "unfreeze_warmup_steps: the group is never frozen"),
        ("image_branch", {"freeze_until": 10}, "group 'image_branch' is frozen for the whole run (freeze_until 10"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tree, section, change, message):
    groups = tree["optimizer"]["groups"]
    (groups[section] if section in groups else tree[section]).update(copy.deepcopy(change))
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_one_group_must_train_from_the_start(tree):
    for group in tree["optimizer"]["groups"].values():
        group["freeze_until"] = 1
    with pytest.raises(ValueError, match="every group is frozen in the first epoch"):
        parse_config(tree)


def test_a_group_may_stay_frozen_where_nothing_asks_it_to_train(tree):
    tree["optimizer"]["groups"]["image_branch"]["freeze_until"] = 99
    del tree["learning_rates"]["reductions"][0]
    assert parse_config(tree)[0].optimizer.groups["image_branch"].freeze_until == 99
