import re

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from app.commands.reference import files, reference, schema
from app.commands.root_config import load_config, parse_config
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
GROUP = "optimizer.groups.image_branch"
RULE = "learning_rates.reductions.0"


@pytest.fixture(scope="module")
def validator():
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


@pytest.mark.parametrize("path", files())
def test_what_is_made_from_the_sections_is_current(path):
    assert (ROOT / path).read_text(encoding="utf-8") == files()[path], "run: python -m app.commands.reference"


def test_every_key_of_every_section_is_described_and_in_the_reference():
    definitions = schema()["$defs"]
    assert {"TemporalBranchConfig", "GroupConfig", "StepSchedule", "ThresholdConfig", "StopConfig"} < definitions.keys()
    for section, definition in definitions.items():
        for name, value in definition["properties"].items():
            assert value["description"] and "\n" not in value["description"], f"{section}.{name}"
            assert re.search(rf"[`.]{name}`", reference()), f"{section}.{name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_names_the_schema_and_is_valid_by_it(path, validator):
    first = path.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)[1]
    assert (path.parent / named).resolve() == ROOT / "configs" / "schema.json"
    validator.validate(OmegaConf.to_container(OmegaConf.load(path)))


def changed(tree: dict, key: str, value) -> dict:
    tree = OmegaConf.create(tree)
    OmegaConf.update(tree, key, value, merge=False, force_add=True)
    return OmegaConf.to_container(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.nam", "x"),
        ("optimiser", {}),
        (f"{GROUP}.weigth_decay", 0.1),
        (f"{GROUP}.lr", "1"),
        (f"{GROUP}.lr", True),
        (f"{GROUP}.lr", 0),
        (f"{GROUP}.betas", [0.9]),
        (f"{GROUP}.betas", [0.9, 1.0]),
        (f"{GROUP}.freeze_until", 1.5),
        ("run.device", "gpu"),
        ("run.name", 7),
        ("model.fusion_head", None),
        (f"{RULE}.rule", "platau"),
        (f"{RULE}.above", 1.0),
        (f"{RULE}.patience", None),
        ("learning_rates.schedules", {"image_branch": {"name": "linear", "factor": 0.5}}),
        ("learning_rates.stop", {"monitor": "val/loss"}),
    ],
)
def test_what_the_schema_refuses_is_refused_when_read(tree, validator, key, value):
    tree = changed(tree, key, value)
    assert not validator.is_valid(tree)
    with pytest.raises(ValueError, match=re.escape(key.replace(".0", "[0]"))):
        parse_config(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{GROUP}.lr", 1),
        (f"{GROUP}.options", {"amsgrad": True}),
        (f"{GROUP}.eps", 1e-6),
        (f"{GROUP}.freeze_from", 9),
        (f"{GROUP}.freeze_until", {"monitor": "val/loss", "below": 0.5, "at_most": 3}),
        ("run.name", "${run.folder}-x"),
        ("model.temporal_branch", None),
        ("learning_rates.schedules", {"image_branch": {"name": "step", "every_epochs": 2, "factor": 0.5}}),
        ("learning_rates.stop", {"monitor": "val/loss", "patience": 3}),
    ],
)
def test_what_is_read_is_valid_by_the_schema(tree, validator, key, value):
    tree = changed(tree, key, value)
    parse_config(tree)
    validator.validate(tree)


def test_a_saved_config_is_valid_by_the_schema(validator):
    validator.validate(load_config(ROOT / "configs" / "fusion.yaml", ["optimizer.clip_norm=1"])[1])
