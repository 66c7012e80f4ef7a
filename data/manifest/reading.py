"""All files of a table, each read once, on all cores: what they hold, and what a cache keeps of them."""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from app.messages import in_words, progress_bar
from data.files.paths import BadFile, resolve
from data.loaders import end_with_parent, possible_workers
from data.manifest.cache import Answer, CacheError, FolderCache, MemoryCache
from data.manifest.config import ManifestConfig
from data.manifest.facts import Facts, File, decode, digest_of, measure, stored_form
from data.manifest.items import pack
from data.spec import MODALITIES
from data.transforms import one_thread

_FILES_AT_ONCE = 128  # that a process reads between two answers
_WORTH_PROCESSES = 512  # files; fewer are read sooner than processes start
_LOOKED_AT = 16  # files of each modality, from which the size of a cache is estimated
_MOST_WAITING = 2**25  # bytes that a process decodes before it writes them

Cache = FolderCache | MemoryCache


def read_facts(
    files: Iterable[File], root: Path, config: ManifestConfig, cache: Cache | None = None
) -> tuple[dict[File, Facts], dict[File, str]]:
    """The facts of the files that can be read, and what is wrong with the others. Raises CacheError.

    Args:
        cache: is given all that can be read, and knows the facts of what it has.
    """
    files = list(files)
    reader = _Reader(root, config, cache)
    title, answers = "checking", {}

    def take(chunk: list[File], found: list[Answer] | CacheError) -> None:
        if isinstance(found, CacheError):
            raise found
        answers.update(zip(chunk, cache.keep(found) if cache else found, strict=True))

    with one_thread():
        if cache:
            cache.open()
            first = _some(files)
            take(first, reader[first])
            if expected := _expected(files, answers):
                cache.check_room(expected)
                title = f"caching about {in_words(expected)}"
        _read_all([file for file in files if file not in answers], reader, title, take)
    right = {file: answers[file] for file in files if not isinstance(answers[file].found, str)}
    if cache:
        num_found = sum(answer.added == 0 for answer in right.values())
        cache.finish({file: answer.key for file, answer in right.items()}, num_found)
    facts = {file: answer.found for file, answer in right.items()}
    return facts, {file: answers[file].found for file in files if file not in right}


def _read_all(
    files: list[File], reader: "_Reader", title: str, take: Callable[[list[File], list[Answer] | CacheError], None]
) -> None:
    at_once = min(_FILES_AT_ONCE, reader.cache.files_at_once) if reader.cache else _FILES_AT_ONCE
    chunks = [files[i : i + at_once] for i in range(0, len(files), at_once)]
    workers = min(possible_workers(), len(chunks)) if len(files) >= _WORTH_PROCESSES else 0
    processes = {"num_workers": workers, "worker_init_fn": end_with_parent}
    loader = DataLoader(reader, sampler=chunks, batch_size=None, collate_fn=_as_they_are, **processes)
    gc.freeze()  # Python's garbage collection writes to all objects, and would give each process a copy of them
    try:
        with progress_bar(loader, title, "file", at_once) as found:
            for chunk, answers in zip(chunks, found, strict=True):
                take(chunk, answers)
    finally:
        gc.unfreeze()


def _some(files: Sequence[File]) -> list[File]:
    """A few of each modality, drawn at random, the same each time."""
    chosen = []
    for modality in MODALITIES:
        own = [file for file in files if file[0] == modality]
        chosen += [own[i] for i in np.random.default_rng(0).permutation(len(own))[:_LOOKED_AT]]
    return chosen


def _expected(files: Sequence[File], answers: dict[File, Answer]) -> int:
    """Bytes that `files` add to the cache, as far as the answers for some tell."""
    asked, added, counts = Counter(), Counter(), Counter(modality for modality, _ in files)
    for (modality, _), answer in answers.items():
        asked[modality] += 1
        added[modality] += answer.added
    return sum(counts[name] * added[name] // asked[name] for name in asked)


def _as_they_are(answers: list[Answer] | CacheError) -> list[Answer] | CacheError:
    return answers


class _Reader(Dataset):
    """Indexed by lists of files, which reach a process one by one: it shares no list with the others."""

    def __init__(self, root: Path, config: ManifestConfig, cache: Cache | None):
        self.root, self.config, self.cache = root, config, cache

    def __getitem__(self, chunk: list[File]) -> list[Answer] | CacheError:
        """Returns an error that concerns all files: raised in a process it would come with its traceback."""
        if self.cache is None:
            return [self._answer(*file) for file in chunk]
        answers, waiting, size = [], [], 0
        try:
            for file in chunk:
                waiting.append(self._answer(*file))
                size += waiting[-1].added
                if size > _MOST_WAITING:
                    answers += self.cache.put(waiting)
                    waiting, size = [], 0
            return answers + self.cache.put(waiting)
        except CacheError as error:
            return error

    def _answer(self, modality: str, cell: str) -> Answer:
        try:
            path = resolve(cell, self.root)
            if self.cache is None:
                return Answer(measure(decode(modality, path, self.config), path, digest_of(path)))
            digest = digest_of(path)
            key = self.cache.key(modality, path, digest)
            if facts := self.cache.find(key):
                return Answer(facts, key)
            decoded = decode(modality, path, self.config)
            if digest_of(path) != digest:
                return Answer("was changed while it was read; run again when it is at rest")
            facts = measure(decoded, path, digest)
            item = pack(facts, stored_form(decoded, self.config))
            return Answer(facts, key, item, self.cache.size_of(item))
        except BadFile as error:
            return Answer(str(error))
        except CacheError:
            raise
        except OSError as error:  # it went away, or changed its rights, since it was found
            return Answer(f"cannot be read ({error.strerror or error})")
