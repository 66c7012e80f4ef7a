"""The note on a branch that is far below the fusion, and the command that finds the cause, on the default data."""

import pytest

import train
from app.commands import branch_alone
from tests.conftest import ROOT


def trained(example, folder, capsys, *overrides):
    """The notes of a run of two epochs, and its checkpoint."""
    config = str(ROOT / "configs" / "examples" / f"{example}.yaml")
    assert train.main(["--config", config, f"run.folder={folder}", "run.epochs=2", *overrides]) == 0
    printed = capsys.readouterr().out.splitlines()
    checkpoint = folder / example / "checkpoints" / "last.pt"
    return [line for line in printed if "far below the fusion" in line], checkpoint


def verdict(checkpoint, capsys):
    files = sorted(path for path in checkpoint.parents[1].rglob("*"))
    assert branch_alone.main([str(checkpoint)]) == 0
    assert sorted(path for path in checkpoint.parents[1].rglob("*")) == files
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_one_loss_for_both_branches_starves_the_temporal_branch(tmp_path, capsys):
    (note,), checkpoint = trained("starving_branch", tmp_path, capsys)
    assert note.startswith("note: temporal_branch alone is far below the fusion; ") and str(checkpoint) in note
    last = verdict(checkpoint, capsys)
    assert last.startswith("starved: ") and "balance.gradients.temporal_branch.own=1" in last


@pytest.mark.slow
def test_a_branch_whose_input_is_noise_is_not_starved(tmp_path, capsys):
    (note,), checkpoint = trained("starving_branch", tmp_path, capsys, "data.sequence_noise=100")
    assert "branch_alone" in note
    assert verdict(checkpoint, capsys).startswith("not starved: ")


@pytest.mark.slow
def test_a_balanced_run_has_no_note(tmp_path, capsys):
    notes, _ = trained("balanced", tmp_path, capsys)
    assert notes == []


@pytest.mark.slow
def test_a_model_of_one_branch_is_an_error(tmp_path, capsys):
    config, quick = str(ROOT / "configs" / "smoke.yaml"), ["run.epochs=1", "run.limit_batches=1"]
    one_branch = ["model.image_branch=null", "optimizer.groups={all: {params: ['*'], lr: 0.01}}"]
    one_branch += ["learning_rates.reductions=[]"]
    assert train.main(["--config", config, f"run.folder={tmp_path}", *one_branch, *quick]) == 0
    checkpoint = tmp_path / "smoke" / "checkpoints" / "last.pt"
    assert branch_alone.main([str(checkpoint)]) == 2
    assert "is of a model in which no fusion trains a branch beside another one" in capsys.readouterr().err
