import json

import pytest

from app.records.environment import changed_environment, environment_digests

TREE = {"data": {"noise": "${oc.env:NOISE}", "size": 8}, "run": {"seed": "${oc.env:SEED,0}", "betas": ["${oc.env:B}"]}}


@pytest.fixture
def saved(monkeypatch):
    monkeypatch.setenv("NOISE", "swordfish")
    monkeypatch.setenv("B", "0.9")
    return {"config": TREE, "environment": environment_digests(TREE)}


def test_the_same_environment_is_known_again(saved):
    assert changed_environment(saved, TREE) == []


def test_values_that_are_read_otherwise_are_named_without_them(saved, monkeypatch):
    monkeypatch.setenv("NOISE", "mackerel")
    monkeypatch.setenv("SEED", "1")
    monkeypatch.delenv("B")
    lines = {
        "data": "data.noise: ${oc.env:NOISE} reads another value",
        "run.seed": "run.seed: ${oc.env:SEED,0} reads another value",
        "run.betas[0]": "run.betas[0]: ${oc.env:B} reads another value",
    }
    assert changed_environment(saved, TREE) == [*lines.values()]
    assert changed_environment(saved, TREE, ("data", "run.see")) == [lines["data"]]
    assert changed_environment(saved, TREE, ("run.seed",)) == [lines["run.seed"]]


def test_what_is_written_otherwise_is_no_matter_of_the_environment(saved):
    """The difference of the configs tells it."""
    tree = {"data": {"noise": "${oc.env:B}", "size": "${oc.env:NOISE}"}, "run": {"seed": 1, "betas": ["${oc.env:B}"]}}
    assert changed_environment(saved, tree) == []


def test_values_that_are_the_same_have_other_digests_in_each_checkpoint(saved):
    assert "swordfish" not in json.dumps(saved)
    again = environment_digests(TREE)
    assert (
        again["digests"].keys() == saved["environment"]["digests"].keys() == {"data.noise", "run.seed", "run.betas[0]"}
    )
    assert not set(again["digests"].values()) & set(saved["environment"]["digests"].values())
