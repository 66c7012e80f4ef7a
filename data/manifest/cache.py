"""Where batches get the stored form of a file (see data/manifest/facts.py) from."""

from pathlib import Path
from typing import Protocol

import numpy as np

from data.files.paths import resolve
from data.manifest.config import ManifestConfig
from data.manifest.facts import decode, one_thread, stored_form


class Samples(Protocol):
    def read(self, modality: str, cell: str) -> np.ndarray:
        """The stored form; a copy. Raises BadFile or OSError for what cannot be read any more."""


class Uncached:
    """Each file is decoded whenever it is asked for."""

    def __init__(self, root: Path, config: ManifestConfig):
        self.root, self.config = root, config

    def read(self, modality: str, cell: str) -> np.ndarray:
        with one_thread():
            return stored_form(decode(modality, resolve(cell, self.root), self.config), self.config)
