import re

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from app.commands.reference import files, reference, schema
from app.commands.root_config import Config, load_config, parse_config
from app.learning_rates.learning_rates import StepSchedule, StopConfig
from app.learning_rates.rules import ThresholdConfig
from app.param_groups.groups import GroupConfig
from app.section import Section, sections_of, type_below
from models.temporal_branch import TemporalBranchConfig
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
GROUP = "optimizer.groups.image_branch"
RULE = "learning_rates.reductions.0"


@pytest.fixture(scope="module")
def validator():
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def sections_below(section: type[Section]) -> set[type[Section]]:
    found = {section}
    for field in section.model_fields.values():
        hint = field.rebuild_annotation()
        for below in sections_of(hint) or sections_of(type_below(hint, 0)):
            found |= sections_below(below)
    return found


@pytest.mark.parametrize("path", files())
def test_what_is_made_from_the_sections_is_current(path):
    assert (ROOT / path).read_text(encoding="utf-8") == files()[path], "run: python -m app.commands.reference"


def test_every_key_of_every_section_is_described_and_in_the_reference():
    sections = sections_below(Config)
    assert {Config, TemporalBranchConfig, GroupConfig, StepSchedule, ThresholdConfig, StopConfig} < sections
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description and "\n" not in field.description, f"{section.__name__}.{name}"
            assert re.search(rf"[`.]{name}`", reference()), f"{section.__name__}.{name}"


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
        (f"{GROUP}.lr", "${optimizer.groups.fusion_head.lr}"),
        (f"{GROUP}.lr", "${oc.env:LR}"),
        (f"{GROUP}.no_decay", "${oc.env:YES,true}"),
        (f"{GROUP}.betas", ["${optimizer.groups.fusion_head.betas[0]}", 0.999]),
        (f"{GROUP}.betas", "${optimizer.groups.fusion_head.betas}"),
        (f"{GROUP}.options", {"amsgrad": True}),
        (f"{GROUP}.eps", 1e-6),
        (GROUP, "${optimizer.groups.fusion_head}"),
        ("run.device", "${oc.env:DEVICE,cpu}"),
        ("model.temporal_branch", None),
        (RULE, "${learning_rates.reductions[1]}"),
        (f"{RULE}.rule", "${learning_rates.reductions[1].rule}"),
        ("learning_rates.schedules", {"image_branch": {"name": "step", "every_epochs": 2, "factor": 0.5}}),
        ("learning_rates.stop", {"monitor": "val/loss", "patience": 3}),
    ],
)
def test_what_is_read_is_valid_by_the_schema(tree, validator, monkeypatch, key, value):
    monkeypatch.setenv("LR", "1e-4")
    tree = changed(tree, key, value)
    parse_config(tree)
    validator.validate(tree)


def test_a_saved_config_is_valid_by_the_schema(validator):
    validator.validate(load_config(ROOT / "configs" / "fusion.yaml", ["optimizer.clip_norm=1"])[1])
