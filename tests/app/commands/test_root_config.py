import copy
import math

import pytest

from app.commands.root_config import not_default, parse_config
from app.records.run_folder import create_run_folder

PLATEAU = {"groups": ["image_branch"], "monitor": "val/loss", "rule": "plateau", "factor": 0.1, "patience": 1}
THRESHOLD = {"groups": ["image_branch"], "monitor": "val/loss", "rule": "threshold", "factor": 0.1, "above": 0.5}


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"image_branch": None, "temporal_branch": None}, "model: image_branch and temporal_branch are both"),
        ("learning_rates", {"reductions": [without(PLATEAU, "patience")]}, "reductions[0].patience: missing; add it"),
        (
            "learning_rates",
            {"reductions": [PLATEAU | {"above": 1.0}]},
            "reductions[0].above: belongs to rule: threshold, not to rule: p",
        ),
        ("learning_rates", {"reductions": [without(THRESHOLD, "above")]}, "needs exactly one of above and below"),
        ("learning_rates", {"reductions": [THRESHOLD | {"below": 0.1}]}, "needs exactly one of above and below"),
        (
            "learning_rates",
            {"reductions": [THRESHOLD | {"patience": 1}]},
            "patience: belongs to rule: plateau, not to rule: thr",
        ),
        ("learning_rates", {"reductions": [PLATEAU | {"min_lr": 0.0005}]}, "min_lr: found 0.0005, must be below"),
        ("learning_rates", {"schedules": {"image": {"name": "cosine"}}}, "unknown group 'image'"),
        (
            "learning_rates",
            {"schedules": {"image_branch": {"name": "step", "factor": 0.5}}},
            "image_branch.every_epochs: missing; add it (a whole",
        ),
        (
            "learning_rates",
            {"schedules": {"image_branch": {"name": "linear", "factor": 0.5}}},
            "factor: belongs to name: step, not to name: linear",
        ),
        (
            "learning_rates",
            {"schedules": {"image_branch": {"name": "cos"}}},
            "expected one of constant, cosine, linear",
        ),
        ("learning_rates", {"reductions": [PLATEAU | {"groups": ["fusion_head"] * 2}]}, "names 'fusion_head' twice"),
        ("learning_rates", {"reductions": [THRESHOLD | {"above": math.nan}]}, "above: found nan, must be a finite"),
        ("learning_rates", {"reductions": [THRESHOLD | {"above": math.inf}]}, "above: found inf, must be a finite"),
        (
            "learning_rates",
            {"reductions": [PLATEAU | {"mode": "min"}]},
            "reductions[0].mode: unknown key; known here",
        ),
        ("image_branch", {"eps": "small"}, "eps: found 'small', expected a number >= 0, or for Adafactor two"),
        ("image_branch", {"eps": -1.0}, "eps: found -1.0"),
        ("image_branch", {"eps": True}, "eps: found True"),
        ("image_branch", {"eps": math.nan}, "eps: found nan"),
        ("image_branch", {"eps": [1e-8]}, "eps: found [1e-08]"),
        ("image_branch", {"eps": [1e-8, None]}, "eps: found [1e-08, None]"),
        ("image_branch", {"layer_decay": 0.0}, "layer_decay: found 0.0, must be > 0 and <= 1"),
        ("image_branch", {"clip_norm": -1.0}, "clip_norm: found -1.0, must be > 0"),
        ("image_branch", {"unfreeze_warmup_steps": 3}, "unfreeze_warmup_steps: the group is never frozen"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tree, section, change, message):
    groups = tree["optimizer"]["groups"]
    (groups[section] if section in groups else tree[section]).update(copy.deepcopy(change))
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_fusion_method_without_parameters_needs_the_branches_own_losses(tree):
    tree["model"]["fusion_head"]["method"] = "late"
    tree["balance"]["gradients"] = {
        "image_branch": {"fusion": 1.0, "own": 1.0},
        "temporal_branch": {"fusion": 1.0, "own": 0.0},
    }
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert str(error.value) == (
        "balance.gradients.temporal_branch.own: found 0, but with model.fusion_head.method=late a branch learns from "
        "its own head alone; raise it above 0"
    )
    tree["balance"]["gradients"]["temporal_branch"]["own"] = 0.5
    assert parse_config(tree)[0].model.fusion_head.method == "late"


def test_all_contradictions_are_told_at_once(tree):
    tree["learning_rates"]["schedules"] = {"image": {"name": "constant"}, "fusion_head": {"name": "constant"}}
    tree["learning_rates"]["reductions"] = [PLATEAU | {"groups": ["image_branch", "heads"], "min_lr": 1.0}]
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "learning_rates.schedules.image",
        "learning_rates.reductions[0].min_lr",
        "learning_rates.reductions[0].groups",
    ]


@pytest.mark.parametrize("until", [1, {"monitor": "val/loss", "below": 0.5, "at_most": 5}])
def test_one_group_must_train_from_the_start(tree, until):
    for group in tree["optimizer"]["groups"].values():
        assert parse_config(tree)
        group["freeze_until"] = until
    with pytest.raises(ValueError, match="every group is frozen in the first epoch"):
        parse_config(tree)


CONDITION = {"monitor": "val/loss", "below": 0.5, "at_most": 5}


EITHER = "or a mapping with the keys monitor, above, below, at_most"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"freeze_until": CONDITION | {"above": 0.5}},
            ".freeze_until: a condition needs exactly one of above and below",
        ),
        ({"freeze_until": without(CONDITION, "below")}, ".freeze_until: a condition needs exactly one of above and"),
        ({"freeze_until": without(CONDITION, "at_most")}, ".freeze_until.at_most: missing; add it (a whole number >="),
        ({"freeze_from": CONDITION | {"at_most": 0}}, ".freeze_from.at_most: found 0, must be >= 1"),
        ({"freeze_from": CONDITION | {"below": "x"}}, ".freeze_from.below: found 'x', expected a number, or null"),
        ({"freeze_from": CONDITION | {"metric": "x"}}, ".freeze_from.metric: unknown key; known here: monitor, above"),
        ({"freeze_until": -1}, ".freeze_until: found -1, must be >= 0"),
        ({"freeze_from": 0}, ".freeze_from: found 0, must be >= 1"),
        ({"freeze_until": "x"}, f".freeze_until: found 'x', expected a whole number >= 0, {EITHER}"),
        ({"freeze_from": True}, f".freeze_from: found True, expected a whole number >= 1, {EITHER}, or null"),
        ({"freeze_until": None}, f".freeze_until: found None, expected a whole number >= 0, {EITHER}"),
        (
            {"freeze_until": 3, "freeze_from": 3},
            ".freeze_from: found 3, but it is frozen for 3 epochs at least (freeze_until), so the group never trains; "
            "raise freeze_from, or lower freeze_until",
        ),
        ({"freeze_until": CONDITION, "freeze_from": 1}, ".freeze_from: found 1, but it is frozen for 1 epoch at least"),
        ({"freeze_until": 5, "freeze_from": CONDITION}, ".freeze_from: at_most 5, but it is frozen for 5 epochs at le"),
        ({"unfreeze_warmup_steps": 3, "freeze_from": 3}, ".unfreeze_warmup_steps: the group is never frozen; add fre"),
    ],
)
def test_what_is_wrong_with_a_condition_is_one_line_with_its_key(tree, change, message):
    tree["optimizer"]["groups"]["image_branch"].update(change)
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert str(error.value).startswith(f"optimizer.groups.image_branch{message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"freeze_until": CONDITION, "freeze_from": 2, "unfreeze_warmup_steps": 5},
        {"freeze_until": 4, "freeze_from": CONDITION},
        {"freeze_until": CONDITION, "freeze_from": CONDITION},
        {"freeze_until": "${optimizer.groups.fusion_head.freeze_until}", "freeze_from": 9},
        {"freeze_until": CONDITION | {"at_most": "${run.epochs}"}},
    ],
)
def test_conditions_that_let_a_group_train_are_accepted(tree, change):
    tree["optimizer"]["groups"]["fusion_head"]["freeze_until"] = CONDITION
    tree["optimizer"]["groups"]["image_branch"].update(change)
    group = parse_config(tree)[0].optimizer.groups["image_branch"]
    assert group.freeze_until != 0


def test_a_group_may_stay_frozen_where_nothing_asks_it_to_train(tree):
    tree["optimizer"]["groups"]["image_branch"]["freeze_until"] = 99
    del tree["learning_rates"]["reductions"][0]
    assert parse_config(tree)[0].optimizer.groups["image_branch"].freeze_until == 99


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "/a", "a\\b", "..", "a..b", ".", ".hidden", "a.", "a ", " a", "a\nb", "a\x00b", "a\x7fb", "a\u2028b"]
    + ["\udcff", "c:a", "a" * 241, "\u00e9" * 121],  # the first is a byte of the command line that is no UTF-8
)
def test_a_run_name_that_is_no_name_of_a_folder_is_refused(tree, name):
    tree["run"]["name"] = name
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert str(error.value).startswith("run.name: found ") and "give a plain name for a folder" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["a" * 240, "\u00e9" * 120, "a.b-c_d e", "12:30", "lr=1e-4,wd=0", "\u540d\u524d", "-x"]
)
def test_a_run_name_that_is_allowed_gives_its_folder_and_more_of_them(tree, name, tmp_path):
    tree["run"]["name"] = name
    assert parse_config(tree)[0].run.name == name
    assert [create_run_folder(tmp_path, name).name for _ in range(2)] == [name, f"{name}-2"]


def test_an_empty_run_folder_is_refused(tree):
    tree["run"]["folder"] = ""
    with pytest.raises(ValueError, match="run.folder: found '', expected a text"):
        parse_config(tree)


def test_what_is_not_default_is_told_key_by_key(tree):
    tree["optimizer"]["groups"]["image_branch"]["clip_norm"] = 2.0
    tree["loss"] = {"label_smoothing": 0.125}
    tree["balance"]["learning_rates"] = {"rule": "miles", "factor": 0.25}
    lines = not_default(tree)
    assert "balance.gradients.image_branch.own: 0.0 -> 1.0" in lines
    assert "optimizer.groups.image_branch.clip_norm: None -> 2.0" in lines
    assert "learning_rates.reductions[0].min_lr: 0.0 -> 1e-06" in lines
    assert "loss.label_smoothing: 0.0 -> 0.125" in lines
    assert "balance.learning_rates: None -> {'rule': 'miles', 'factor': 0.25}" in lines
    assert not any(".lr: " in line or line.startswith("statistics") for line in lines)
    tree["statistics"]["each"] = 3
    assert "statistics: cannot be read by this release" in not_default(tree)
