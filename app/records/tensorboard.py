"""Everything that goes to TensorBoard. Each tag is spelled here, once. The only user of SummaryWriter.

TensorBoard gives a colour to each run, not to each tag: so each group writes into a sub-run of its own, and a statistic
of all groups is one chart with a line for each. Sections are sorted by name, hence the numbers; the first two are open
at first.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter

from app.evaluation.metrics import RECALL
from app.messages import writing

CLASSES_DRAWN = 20  # with more of them no recall is drawn
SECONDS_HEARD = 20
VAL, GROUPS, GRADIENTS, TRAIN, STATISTICS, RULES, CLASSES, TEST = (
    "1_val",
    "2_groups",
    "3_gradients",
    "4_train",
    "5_statistics",
    "6_rules",
    "7_classes",
    "8_test",
)
# Of a group; the others are in STATISTICS. Within a section TensorBoard sorts by name: lr, then update_ratio.
FIRST = {"lr": GROUPS, "update_ratio": GROUPS, "grad_norm": GRADIENTS, "grad_share": GRADIENTS}
FINAL = (f"{VAL}/accuracy", f"{VAL}/loss", f"{TEST}/accuracy", f"{TEST}/loss")  # compared in the page of HParams
HPARAMS = ("lr", "weight_decay", "beta1", "beta2", "seed")  # in this order in that page


class TensorBoard:
    """The event files of a run: its own in `folder`, those of a group in `folder`/groups/<group>.

    The files are written by threads: what they cannot write is an OSError of the next call, of `close` at the latest.
    """

    def __init__(
        self, folder: Path, group_names: Iterable[str], branches: Iterable[str], resume_after: int | None = None
    ):
        """resume_after: hides what a stopped run wrote after this step."""
        self.folder = folder
        threading.excepthook = _report_thread_error
        purge_step = None if resume_after is None else resume_after + 1
        sub_runs = {name: f"groups/{_folder_name(name)}" for name in group_names}
        # A branch whose parameters are in groups of other names has a sub-run of its own.
        sub_runs |= {name: f"branches/{name}" for name in branches if name not in sub_runs}
        with writing(folder), _interrupts_for_the_main_thread():
            settings = {"purge_step": purge_step, "flush_secs": 10}  # to be watched while it trains
            self.writer = SummaryWriter(str(folder), **settings)
            self.writers = {name: SummaryWriter(str(folder / path), **settings) for name, path in sub_runs.items()}

    def about(self, config: str, groups: list[list[dict[str, str]]], hparams: dict[str, float]) -> None:
        """What the run is, before its first step.

        Args:
            config: YAML.
            groups: tables with a row for each group, cells by column.
            hparams: values by name, the first word of which is one of HPARAMS; runs are compared by them.
        """
        with writing(self.folder):
            self.writer.add_text("1_groups", "\n\n".join(_markdown(table) for table in groups))
            self.writer.add_text("3_config", f"```yaml\n{config}\n```")
            metrics = [summary_v2.Metric(tag) for tag in FINAL]
            # The page sorts them by name, and has the first five at first.
            numbered = {f"{HPARAMS.index(name.split()[0]) + 1}_{name}": value for name, value in hparams.items()}
            kinds = [summary_v2.HParam(name, display_name=name.partition("_")[2]) for name in numbered]
            self.writer.file_writer.add_summary(summary_v2.hparams_config_pb(kinds, metrics))
            # By its name: runs without one are told apart by their values, and those of the same values are averaged.
            self.writer.file_writer.add_summary(summary_v2.hparams_pb(numbered, trial_id=self.folder.name))

    def train(self, step: int, values: dict[str, float]) -> None:
        self._write(self.writer, step, values, lambda name: f"{TRAIN}/{name}")

    def groups(self, step: int, values: dict[str, dict[str, float]]) -> None:
        """values: {group: {statistic or hyper-parameter: value}}, what is to be drawn."""
        for group, readings in values.items():
            self._write(self.writers[group], step, readings, _tag_of_group)

    def between_groups(self, step: int, first: str, second: str, ratio: float) -> None:
        self._write(self.writer, step, {f"update_ratio_{first}_over_{second}": ratio}, lambda n: f"{STATISTICS}/{n}")

    def validation(self, step: int, metrics: dict[str, float], curves: dict[str, dict[str, float]]) -> None:
        """metrics: of the fusion, and as <branch>/<metric> of each branch alone.
        curves: {statistic: {group, or group.i for its i-th rule: value}}, the state of the learning rates' rules."""
        many_classes = sum(name.startswith(RECALL) for name in metrics) > CLASSES_DRAWN
        own: dict[str, dict[str, float]] = {}
        for name, value in metrics.items():
            branch, _, metric = name.partition("/")
            if name.startswith(RECALL):
                if not many_classes:
                    own.setdefault("", {})[f"{CLASSES}/{name}"] = value
            elif metric:
                own.setdefault(branch, {})[f"{VAL}/{metric}"] = value
            else:
                section = VAL if name in ("accuracy", "loss") else CLASSES
                own.setdefault("", {})[f"{section}/{name}"] = value
        for statistic, values in curves.items():
            for label, value in values.items():
                group = label if label in self.writers else label.rpartition(".")[0]
                own.setdefault(group, {})[f"{RULES}/{statistic}{label.removeprefix(group)}"] = value
        for name, values in own.items():
            self._write(self.writers[name] if name else self.writer, step, values)

    def test(self, step: int, metrics: dict[str, float]) -> None:
        self._write(self.writer, step, {name: metrics[name] for name in ("accuracy", "loss")}, lambda n: f"{TEST}/{n}")

    def lr_events(self, step: int, events: list[dict], text: str, table: np.ndarray) -> None:
        """All of a step: in words; as points of a chart of their own; and, but for freezing, as vertical lines in that
        of lr.

        Args:
            text: of all, as TensorBoard shows one for a step.
            table: of the last ones of the run, as a picture, (H, W, 3) uint8: texts have no place beside the charts.
        """
        with writing(self.folder):
            self.writer.add_image(f"{GROUPS}/lr_events", table, step, dataformats="HWC")
            self.writer.add_text("2_lr_events", text, step)
            for event in events:
                writer = self.writers[event["group"]]
                writer.add_scalar(f"{GROUPS}/lr_event", event["to"], step)
                if event["cause"] not in ("freeze", "unfreeze"):  # where the lr stays, and the effective one changes
                    for lr in (event["from"], event["to"]):
                        writer.add_scalar(f"{GROUPS}/lr", lr, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """By tag, each (H, W, 3) uint8."""
        with writing(self.folder):
            for tag, picture in pictures.items():
                self.writer.add_image(tag, picture, step, dataformats="HWC")

    def recordings(self, recordings: list[tuple[np.ndarray, int]]) -> None:
        """Of the samples that are shown, in their order: (samples,) float32, rate in Hz. Of long ones the beginning."""
        with writing(self.folder):
            for i, (samples, rate) in enumerate(recordings, start=1):
                samples = samples[: SECONDS_HEARD * rate]
                peak = max(float(np.abs(samples).max()), 1e-9)
                self.writer.add_audio(f"val/recording_{i}", samples[None] / peak, 0, sample_rate=rate)

    def close(self) -> None:
        with writing(self.folder), ExitStack() as each:  # all of them, also where one cannot write
            for writer in (self.writer, *self.writers.values()):
                each.callback(writer.close)

    def _write(
        self,
        writer: SummaryWriter,
        step: int,
        values: Mapping[str, float],
        tag: Callable[[str], str] = lambda name: name,
    ) -> None:
        """One event for all scalars, as add_scalar writes one for each: a third of the time."""
        scalars = [Summary.Value(tag=tag(name), simple_value=value) for name, value in values.items()]
        with writing(self.folder):
            writer.file_writer.add_summary(Summary(value=scalars), step)


def _folder_name(group: str) -> str:
    """A group may have any name."""
    name = quote(group, safe=" +,()[]=@")
    return name.replace(".", "%2E") if not name.strip(".") else name


def _tag_of_group(name: str) -> str:
    return f"{FIRST.get(name, STATISTICS)}/{name}"


def _markdown(rows: list[dict[str, Any]]) -> str:
    """A table, without the columns in which no row says anything."""
    columns = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    rows = [{name: row[name] for name in columns} for row in rows]
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(str(cell).replace("|", "\\|").replace("*", "\\*") for cell in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


@contextmanager
def _interrupts_for_the_main_thread() -> Iterator[None]:
    """Threads that begin in there get no Ctrl-C. Else Python would heed it at once where the main thread holds it back,
    as it does while it forks, when Python drops it."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows nothing is forked
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _report_thread_error(args: threading.ExceptHookArgs) -> None:
    """The thread that writes prints no traceback: its error is raised where the next call is made."""
    if not isinstance(args.thread, _AsyncWriterThread):
        threading.__excepthook__(args)
