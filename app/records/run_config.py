"""The config's `run` section: what a run is called, where it lies, and how it is carried out."""

import re
import typing
from pathlib import PureWindowsPath
from typing import Literal

from pydantic import Field, field_validator

from app.section import Section

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16"]
DEVICES, PRECISIONS = typing.get_args(Device), typing.get_args(Precision)
RUN_NAME_BYTES = 240  # of the 255 that file systems allow for a name; the rest is for -2, -3, ...


class RunConfig(Section):
    name: str = Field(
        description=f"a plain name for a folder, up to {RUN_NAME_BYTES} bytes: the run lies in <folder>/<name>, "
        "or <name>-2, ... if that exists"
    )
    folder: str = Field(min_length=1, description="holds the runs")
    seed: int = Field(ge=0, description="initial weights, order, training pairs and noise, dropout")
    epochs: int = Field(ge=1, description="passes over the training split")
    limit_batches: int | None = Field(
        None,
        ge=1,
        description="a quick pass through everything: the first batches only, in training (the same samples in every "
        "epoch), validation and the test at the end; null: all",
    )
    device: Device = Field(description="auto: cuda, else mps, else cpu")
    precision: Precision = Field(
        description="bf16 is autocast, for hardware that has it; a probe warns of a CPU without; an LSTM that the "
        "device cannot run in bf16 runs in fp32"
    )

    @field_validator("name")
    @classmethod
    def _is_a_folder_on_every_system(cls, name: str) -> str:
        """Windows would drop dots and spaces at the end in silence, and take c:a for a drive."""
        is_plain = re.fullmatch(r"(?![.\s])[^/\\]+(?<![.\s])", name) and ".." not in name and name.isprintable()
        if not is_plain or PureWindowsPath(name).drive or len(name.encode("utf-8", "replace")) > RUN_NAME_BYTES:
            allowed = f"up to {RUN_NAME_BYTES} bytes without / \\ or .., no dot or space at an end"
            raise ValueError(f"found {name!r}; give a plain name for a folder: {allowed}")
        return name
