"""What a run found where it ran: versions, and what its config read from the environment, known again by a digest, so
that no secret is stored."""

import hashlib
import os
import platform
from importlib import metadata
from typing import Any

from app.config import environment_values

PACKAGES = ("torch", "torchvision", "torchaudio")
ROUNDS = 100_000  # so that guessing what was read takes long


def versions() -> dict[str, str]:
    """By name, what the numbers of a run depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}


def environment_digests(tree: dict[str, Any]) -> dict[str, Any]:
    """For a checkpoint: of each value of a saved config that reads the environment, by its key, a salted digest."""
    values = environment_values(tree)
    salt = os.urandom(16).hex() if values else ""  # a run that reads nothing saves the same content each time
    return {"salt": salt, "digests": {key: _digest(salt, value) for key, (_, value) in values.items()}}


def changed_environment(saved: dict[str, Any], tree: dict[str, Any], parts: tuple[str, ...] | None = None) -> list[str]:
    """A line for each value that is written as in a checkpoint's config, and reads another value than then.

    Args:
        saved: the checkpoint.
        tree: the config of today, as plain values.
        parts: the keys to look at and below, such as "data"; None: all.
    """
    salt, digests = saved["environment"]["salt"], saved["environment"]["digests"]
    written_then = {key: written for key, (written, _) in environment_values(saved["config"]).items()}
    return [
        f"{key}: {written} reads another value"
        for key, (written, value) in environment_values(tree).items()
        if (parts is None or any(f"{key}.".startswith(f"{part}.") for part in parts))
        and written_then.get(key) == written
        and digests.get(key) != _digest(salt, value)
    ]


def _digest(salt: str, value: Any) -> str:
    return hashlib.pbkdf2_hmac("sha256", repr(value).encode(), salt.encode(), ROUNDS).hex()[:16]
