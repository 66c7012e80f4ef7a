"""Is a branch starved, or does its input say little? Trains one epoch from a checkpoint, twice, and compares.

python -m app.commands.branch_alone runs/fusion/checkpoints/last.pt

Looks at the branch whose own head has the lower validation accuracy. Both epochs have the same samples and each group's
base lr, without warm-up, schedule, reductions and freezing; one with the gates of the run, one in which the branch
learns from its own head alone, gates (0, 1). Where the latter ends clearly better, the fusion's loss leaves the branch
too little to learn from. Writes nothing.
"""

import argparse
import copy
import math
import sys
from pathlib import Path
from typing import Any

from app.commands.build import build_run
from app.commands.root_config import parse_config
from app.messages import progress_bar, run_command, survive_lost_output
from app.records.checkpoint import load_checkpoint
from app.training.objective import BRANCHES
from models.fusion import FUSIONS

GAIN = 0.05  # in validation accuracy: the least by which a starved branch learns more alone


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    return run_command(lambda: branch_alone(args.checkpoint), debug=args.debug)


def branch_alone(checkpoint: Path) -> int:
    """Prints the verdict. Raises ValueError for a model of one branch, or whose fusion trains no branch."""
    saved = load_checkpoint(checkpoint)
    tree, val = saved["config"], saved["val"]
    config = parse_config(tree)[0]
    accuracies = {name: val[f"{name}/accuracy"] for name in BRANCHES if f"{name}/accuracy" in val}
    gates = config.balance.gradients
    known = [name for name, value in accuracies.items() if getattr(gates, name).fusion > 0 and value >= 0]  # no NaN
    if len(accuracies) < 2 or not known or not FUSIONS[config.model.fusion_head.method].has_parameters:
        raise ValueError(f"{checkpoint} is of a model in which no fusion trains a branch beside another one")
    branch = min(known, key=accuracies.__getitem__)
    joint, samples = train_an_epoch(_for_one_epoch(tree), checkpoint, branch)
    alone, _ = train_an_epoch(_for_one_epoch(tree, alone=branch), checkpoint, branch)
    # Two deviations of the difference of two accuracies, at most.
    chance = 2 * math.sqrt(0.5 / samples) if samples else math.inf
    print(f"{branch}: validation accuracy of its own head {accuracies[branch]:.4f} (fused {val['accuracy']:.4f})")
    print(f"after one epoch more: {joint:.4f} with the gates of the run, {alone:.4f} from its own head's loss alone")
    if alone - joint > max(GAIN, chance):
        remedy = f"set balance.gradients.{branch}.own=1 (configs/examples/balanced.yaml)"
        print(f"starved: the fusion's loss leaves it too little to learn from; {remedy}")
    else:
        print("not starved: alone it learns no more, so its input says little, or it needs more epochs")
    return 0


def train_an_epoch(tree: dict[str, Any], checkpoint: Path, branch: str) -> tuple[float, int]:
    """Trains from a checkpoint with another config. Returns the branch's validation accuracy, and its samples."""
    run = build_run(*parse_config(tree), checkpoint)
    state = run.learning_rates.state_dict()  # its reductions are undone: the lrs are the groups' own
    run.learning_rates.load_state_dict(state | {"reduction": dict.fromkeys(state["reduction"], 1.0), "frozen": []})
    epoch, loader = run.position.epoch, run.loaders["train"]
    run.learning_rates.start_epoch(epoch=epoch, step=run.position.step)
    run.train_step.start_epoch(epoch)
    loader.sampler.epoch = epoch
    with progress_bar(loader, "epoch") as batches:
        for batch in batches:
            run.train_step(run.modality_dropout(epoch, batch), run.position.step)
            run.position.step += 1
    run.train_step.end_epoch()
    val, predictions = run.validate(run.parts.model)
    return val[f"{branch}/accuracy"], int(predictions.has(branch).sum())


def _for_one_epoch(tree: dict[str, Any], alone: str | None = None) -> dict[str, Any]:
    """A run's config with constant lrs and nothing frozen. alone: the branch that learns from its own head alone."""
    tree = copy.deepcopy(tree)
    tree["learning_rates"] = {"warmup_steps": 0, "reductions": []}
    tree["balance"] = {**tree.get("balance", {}), "learning_rates": None}
    for group in tree["optimizer"]["groups"].values():
        for key in ("freeze_until", "freeze_from", "unfreeze_warmup_steps"):
            group.pop(key, None)
    if alone:
        gates = {**tree["balance"].get("gradients", {}), alone: {"fusion": 0.0, "own": 1.0}}
        tree["balance"]["gradients"] = gates
    return tree


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
