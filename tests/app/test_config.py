import dataclasses
import math

import pytest
from omegaconf import OmegaConf

from app.config import differences, load_config, parse_config
from app.config_schema import Config, GroupConfig, ReductionConfig
from tests.conftest import ROOT


def at(tree: dict, key: str, value) -> dict:
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    config, tree = load_config(path)
    assert isinstance(config, Config)
    assert parse_config(tree)[0] == config


def test_the_default_config_shows_every_key_of_every_section(tree):
    """Groups, schedules and reductions have optional keys of their own, which a comment there lists."""
    for section in dataclasses.fields(Config):
        assert set(tree[section.name]) == {field.name for field in dataclasses.fields(section.type)}
    text = (ROOT / "configs" / "fusion.yaml").read_text()
    for kind in (GroupConfig, ReductionConfig):
        for field in dataclasses.fields(kind):
            assert field.name in text or field.name in ("above", "below", "repeat"), field.name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.groups.image_branch.lr", -1e-3, "optimizer.groups.image_branch.lr: found -0.001, must be > 0"),
        ("optimizer.groups.image_branch.lr", 0, "must be > 0"),
        (
            "optimizer.groups.image_branch.lr",
            "fast",
            "optimizer.groups.image_branch.lr: found 'fast', expected a number",
        ),
        ("optimizer.groups.image_branch.lr", True, "expected a number"),
        ("optimizer.groups.image_branch.lr", math.nan, "must be > 0"),
        ("optimizer.groups.image_branch.lr", math.inf, "must be > 0"),
        ("optimizer.groups.image_branch.lr", ..., "optimizer.groups.image_branch.lr: missing; add it (a number > 0)"),
        ("optimizer.groups.image_branch.weigth_decay", 0.1, "did you mean 'weight_decay'?"),
        ("optimizer.groups.image_branch.betas", [0.9], "betas: found [0.9], expected two numbers"),
        ("optimizer.groups.image_branch.betas", [1.2, 0.9], "each value must be >= 0 and < 1"),
        ("optimizer.groups.image_branch.betas", [0.9, 1.0], "each value must be >= 0 and < 1"),
        ("optimizer.groups.image_branch.betas", 0.9, "optimizer.groups.image_branch.betas: found 0.9"),
        ("optimizer.groups.image_branch", 3, "optimizer.groups.image_branch: expected a mapping"),
        ("optimizer.groups", [1], "optimizer.groups: expected a mapping of names"),
        ("optimiser", {}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ("run.device", "gpu", "run.device: found 'gpu', expected one of auto, cpu, cuda, mps"),
        ("run.epochs", 1.5, "run.epochs: found 1.5, expected a whole number"),
        ("run.epochs", 0, "run.epochs: found 0, must be >= 1"),
        ("model.temporal_branch.dropout", 1.0, "must be >= 0 and < 1"),
        ("learning_rates.reductions", {"a": 1}, "learning_rates.reductions: expected a list of entries"),
        ("run.name", "${nowhere.there}", "run.name: "),
        ("optimizer.groups.image_branch.betas", ["${nowhere.there}", 0.9], "betas: "),
    ],
)
def test_bad_values_are_refused_in_one_line_with_the_full_key(tree, key, value, message):
    with pytest.raises(ValueError) as error:
        parse_config(at(tree, key, value))
    assert message in str(error.value)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factr": 0.5}, "learning_rates.reductions[1].factr: unknown key; did you mean 'factor'?"),
        ({"factor": 1.0}, "learning_rates.reductions[1].factor: found 1.0, must be > 0 and < 1"),
        ({"patience": "two"}, "learning_rates.reductions[1].patience: found 'two'"),
        ({"groups": []}, "learning_rates.reductions[1].groups: empty"),
        ({"groups": ["temporal_brunch"]}, "unknown group 'temporal_brunch'; did you mean 'temporal_branch'?"),
        ({"min_lr": 1.0}, "learning_rates.reductions[1].min_lr: found 1.0, must be below optimizer.groups."),
    ],
)
def test_entries_of_lists_are_named_by_their_place(tree, change, message):
    tree["learning_rates"]["reductions"][1].update(change)
    with pytest.raises(ValueError) as error:
        parse_config(tree)
    assert message in str(error.value)


def test_overrides_reach_groups_and_list_entries_with_their_types():
    config, tree = load_config(
        ROOT / "configs" / "fusion.yaml",
        [
            "optimizer.groups.image_branch.lr=1e-4",
            "optimizer.groups.image_branch.betas=[0.8, 0.9]",
            "learning_rates.reductions[0].patience=7",
            "run.name=other",
        ],
    )
    assert config.optimizer.groups["image_branch"].lr == 1e-4
    assert config.optimizer.groups["image_branch"].betas == [0.8, 0.9]
    assert config.learning_rates.reductions[0].patience == 7
    assert tree["run"]["name"] == "other"


@pytest.mark.parametrize(
    "override", ["run.name", "=3", "run.name.first=3", "optimizer.groups.image_branch.lr=[", "a.b=1"]
)
def test_bad_overrides_are_refused(override):
    with pytest.raises(ValueError):
        load_config(ROOT / "configs" / "fusion.yaml", [override])


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2\n", "", "a: b: c", "\x00"])
def test_files_that_are_no_config_are_refused(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml does not exist; available: .*configs/fusion.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_secrets_of_the_environment_stay_out_of_the_saved_config(tree, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    tree["run"]["folder"] = "${oc.env:SECRET}"
    tree["run"]["name"] = "${run.folder}-${optimizer.name}"
    tree["optimizer"]["groups"]["image_branch"]["params"] = ["image_branch.${oc.env:SECRET}", "${oc.env:NO,x}"]
    config, plain = parse_config(tree)
    assert config.run.folder == "swordfish"
    assert config.run.name == "swordfish-AdamW"
    assert config.optimizer.groups["image_branch"].params == ["image_branch.swordfish", "x"]
    assert plain["run"]["folder"] == "${oc.env:SECRET}"
    assert plain["run"]["name"] == "${oc.env:SECRET}-AdamW"
    assert parse_config(plain)[0] == config
    assert "swordfish" not in OmegaConf.to_yaml(OmegaConf.create(plain))


def test_differences_name_the_leaves_that_changed():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 2, "c": [1, 2]}, "e": 4}) == ["a.b: 1 -> 2", "d: 3 -> None", "e: None -> 4"]
