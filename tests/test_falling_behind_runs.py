"""The warning that a branch falls behind, in runs on the default data: where it is to come, and where not."""

import pytest

import train
from tests.conftest import ROOT

# Of the balanced run, and of the starving one where the recordings are drowned in noise.
SILENT = {"balanced": [], "starving_branch": ["data.sequence_noise=100"]}


@pytest.fixture
def warnings_of(tmp_path, capsys):
    def run(example, *overrides):
        config = str(ROOT / "configs" / "examples" / f"{example}.yaml")
        assert train.main(["--config", config, f"run.folder={tmp_path}", "run.epochs=2", *overrides]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "falls behind" in line]

    return run


@pytest.mark.slow
def test_one_loss_for_both_branches_starves_the_temporal_branch_and_the_run_says_so(warnings_of):
    (line,) = warnings_of("starving_branch")
    assert line.startswith("warning: temporal_branch falls behind: ")
    assert "balance.gradients.temporal_branch.own=1" in line


@pytest.mark.slow
@pytest.mark.parametrize("example", SILENT)
def test_it_is_silent_where_a_branch_learns_what_it_can(warnings_of, example):
    assert warnings_of(example, *SILENT[example]) == []
