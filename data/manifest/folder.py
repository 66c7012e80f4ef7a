"""A folder as a manifest: <split>/<class>/ in it, and one stem for an image and the sequence that belongs to it."""

import os
from collections.abc import Sequence
from pathlib import Path

from data.manifest.cells import SUFFIXES, Cells
from data.manifest.columns import SPLIT_OF_WORD
from data.manifest.finding import Finding, of_table, refuse, shown

FILE_SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    "sequence": (".wav", ".flac", ".ogg", ".mp3", ".npy", ".npz", ".csv", ".tsv"),
}
HIDDEN = ("thumbs.db", "desktop.ini")  # and every name that starts with a dot
_LAYOUT = "files lie as <split>/<class>/<name>"
_MODALITY_OF = {suffix: modality for modality, suffixes in FILE_SUFFIXES.items() for suffix in suffixes}


def read_folder(folder: Path, *, root: Path, modalities: Sequence[str]) -> tuple[Cells, list[Finding]]:
    """The columns image, sequence, label and split, sorted by path, and the files of which no row could be made.

    A class may have folders below it. A modality that the model does not read is a column only if there are files.

    Args:
        root: the folder, or one above it. Paths are relative to this.

    Raises Findings where the layout is another, or where there is no sample.
    """
    below_root = Path(os.path.relpath(folder.resolve(), root.resolve())).as_posix()
    if below_root.split("/")[0] == "..":
        refuse(folder, [of_table(f"does not lie in data.root, {shown(str(root), 1000)}; leave data.root out")])
    prefix = "" if below_root == "." else f"{below_root}/"
    findings: list[Finding] = []
    splits, stray = _listed(folder, "", findings)
    if wrong := _wrong_splits(splits, stray):
        refuse(folder, findings + wrong)
    findings += [_of_file(name, f"lies beside the splits; {_LAYOUT}") for name in stray]
    rows: list[list[str | None]] = []
    for split in splits:
        classes, stray = _listed(folder, f"{split}/", findings)
        findings += [_of_file(f"{split}/{name}", f"lies beside the classes; {_LAYOUT}") for name in stray]
        if not classes:
            findings.append(_of_file(split, f"has no folder of a class; {_LAYOUT}"))
        for label in classes:
            samples = _samples(folder, f"{split}/{label}/", prefix, findings)
            if not samples:
                findings.append(_of_file(f"{split}/{label}", "is a class without a sample; add files, or delete it"))
            rows += [[sample.get("image"), sample.get("sequence"), label, split] for sample in samples]
    if not rows:
        refuse(folder, findings)
    names = ["image", "sequence", "label", "split"]
    for i, modality in ((1, "sequence"), (0, "image")):
        if modality not in modalities and not any(row[i] for row in rows):
            del names[i]
            rows = [row[:i] + row[i + 1 :] for row in rows]
    return Cells(names, list(range(1, len(rows) + 1)), rows, {}, set()), findings


def _of_file(path: str, problem: str) -> Finding:
    return Finding(None, None, path, problem)


def _listed(folder: Path, below: str, findings: list[Finding]) -> tuple[list[str], list[str]]:
    """The names of folders and of files in `folder`/`below`, each sorted; what cannot be looked into is a finding."""
    folders, files = [], []
    try:
        with os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.casefold() in HIDDEN:
                    continue
                if not entry.is_dir():
                    files.append(entry.name)
                elif entry.is_symlink():
                    problem = "is a link to a folder, which is not followed; move the folder itself here"
                    findings.append(_of_file(below + entry.name, problem))
                else:
                    folders.append(entry.name)
    except OSError as error:
        findings.append(_of_file(below, f"cannot be read: {error.strerror}"))
    return sorted(folders), sorted(files)


def _wrong_splits(folders: list[str], files: list[str]) -> list[Finding]:
    allowed = f"splits are {', '.join(SPLIT_OF_WORD)}"
    if any(name.casefold() in SPLIT_OF_WORD for name in folders):
        unknown = [name for name in folders if name.casefold() not in SPLIT_OF_WORD]
        return [_of_file(name, f"is not called like a split; {allowed}") for name in unknown]
    tables = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
    if tables:
        return [of_table(f"has no folders of splits; did you mean the table '{shown(tables[0])}' in it?")]
    found = "; there are " + ", ".join(f"'{shown(name)}'" for name in folders[:10]) if folders else ""
    without = "; for files without a split write a table that names them"
    return [of_table(f"has no folder that is called like a split{found}; {_LAYOUT}, {allowed}{without}")]


def _samples(folder: Path, below: str, prefix: str, findings: list[Finding]) -> list[dict[str, str]]:
    """Modality -> path, for each stem below the folder of a class."""
    sample_of: dict[str, dict[str, str]] = {}
    ambiguous = set()
    for path in _files_below(folder, below, findings):
        stem, suffix = os.path.splitext(path)
        modality = _MODALITY_OF.get(suffix.lower())
        other = sample_of.setdefault(stem, {}).setdefault(modality, prefix + path) if modality else None
        if modality is None:
            problem = f"is no image ({' '.join(FILE_SUFFIXES['image'])}) or sequence "
            findings.append(_of_file(path, problem + f"({' '.join(FILE_SUFFIXES['sequence'])}); move it away"))
        elif not _is_text(path):
            ambiguous.add(stem)
            findings.append(_of_file(path, "its name is not UTF-8; rename it"))
        elif other != prefix + path:
            ambiguous.add(stem)
            name = shown(other.rsplit("/", 1)[1])
            findings.append(
                _of_file(path, f"is a second {modality} beside '{name}'; a sample has one, rename or delete")
            )
    return [sample_of[stem] for stem in sorted(sample_of) if stem not in ambiguous]


def _files_below(folder: Path, below: str, findings: list[Finding]) -> list[str]:
    waiting, files = [below], []
    while waiting:
        here = waiting.pop()
        deeper, names = _listed(folder, here, findings)
        waiting += [f"{here}{name}/" for name in deeper]
        files += [here + name for name in names]
    return sorted(files)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
