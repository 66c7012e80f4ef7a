"""All that is wrong with a table and its files, found before anything trains, each as a line with row and remedy."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.messages import closest
from data.manifest.cache import Cache, Facts, File, ImageFacts, SequenceFacts
from data.manifest.config import ManifestConfig
from data.manifest.finding import Finding, listed, of_table
from data.manifest.splits import class_names_of, labels_alike, split_findings, split_of_rows
from data.manifest.table import BRANCH_OF, Row, Table, read_table
from data.spec import SPLITS, DataSpec


@dataclass(frozen=True)
class Checked:
    """
    Args:
        splits: of each row; None where a finding says why it has none.
        facts: of the files that can be used.
        cache: of all files that can be read.
        class_names: by label, 0 first.
        findings: what concerns the table as a whole first, then in the order of the rows.
        notes: what may be meant so, or may be a mistake.
    """

    table: Table
    splits: list[str | None]
    facts: dict[File, Facts]
    cache: Cache
    class_names: tuple[str, ...]
    findings: list[Finding]
    notes: list[str]

    def bad_rows(self) -> set[int]:
        """Numbers of the rows with a finding."""
        return {finding.row for finding in self.findings if finding.row is not None}

    def rows_of(self, split: str) -> list[Row]:
        """Those without a finding."""
        bad = self.bad_rows()
        return [
            row for row, own in zip(self.table.rows, self.splits, strict=True) if own == split and row.number not in bad
        ]


def check(
    config: ManifestConfig, modalities: Sequence[str], saved: DataSpec | None = None, folder: Path | None = None
) -> Checked:
    """Of a table to train on.

    Args:
        modalities: those that the model reads.
        saved: of a checkpoint, whose classes and features the rows must have.
        folder: that keeps what is decoded; None: nothing is kept.

    Raises FileNotFoundError, CacheError, or Findings where the table as a whole cannot be read.
    """
    root = Path(config.root) if config.root else None
    table = read_table(Path(config.manifest), root=root, columns=config.columns, modalities=tuple(modalities))
    cache = Cache(table.root, config, folder)
    splits, findings = split_of_rows(table, config.fractions.model_dump())
    facts, of_files = check_files(table, cache, modalities, saved)
    findings = [*table.findings, *findings, *of_files, *_leaks(table, splits, facts, modalities)]
    if saved:
        findings += unknown_labels(table, saved.class_names)
    bad = {finding.row for finding in findings}
    usable = [(row, split) for row, split in zip(table.rows, splits, strict=True) if row.number not in bad]
    of_rest = split_findings([row for row, _ in usable], [split for _, split in usable], table.columns)
    training = [row for row, split in usable if split == "train"]
    of_rest += _not_in_training(training, table, modalities)
    hint = " (rows with a finding do not count)" if bad else ""
    findings += [finding._replace(problem=finding.problem + hint) for finding in of_rest]
    findings.sort(key=lambda finding: finding.row or 0)
    notes = [f"{table.path}: {line}" for line in labels_alike(row.label for row in table.rows if row.label)]
    if "split" not in table.columns:
        notes.append(_how_split(table))
    class_names = saved.class_names if saved else class_names_of(row.label for row in training)
    return Checked(table, splits, facts, cache, class_names, findings, notes)


def _how_split(table: Table) -> str:
    by = next((f"the column {table.columns[role]}" for role in ("group", "id") if role in table.columns), "the paths")
    near = closest("split", list(table.extra_columns))
    misspelt = f"; did you mean the column '{near}' to say the split? It is called split or subset" if near else ""
    return f"no column says the split: it is drawn by a hash of {by}{misspelt}"


def _not_in_training(training: Sequence[Row], table: Table, modalities: Sequence[str]) -> Iterator[Finding]:
    for modality in modalities:
        if training and all(getattr(row, modality) is None for row in training):
            remedy = f", or {BRANCH_OF[modality]}=null for a one-branch model" if len(modalities) > 1 else ""
            problem = f"no training row has one, so nothing could be learnt from it; name files{remedy}"
            yield of_table(problem, table.columns[modality])


def unknown_labels(table: Table, class_names: tuple[str, ...]) -> list[Finding]:
    known = set(class_names)
    problem = f"is no class of the checkpoint, which has {listed(class_names)}; correct the label, or train again"
    return [
        Finding(row.number, table.columns["label"], row.label, problem)
        for row in table.rows
        if row.label is not None and row.label not in known
    ]


def check_files(
    table: Table, cache: Cache, modalities: Sequence[str], saved: DataSpec | None
) -> tuple[dict[File, Facts], list[Finding]]:
    """The facts of the files that can be used, and a finding for each row with another."""
    config = cache.config
    cells = ((name, getattr(row, name)) for row in table.rows for name in modalities)
    facts, problems = cache.look_at(dict.fromkeys(cell for cell in cells if cell[1] is not None))
    sequences = {file: fact for file, fact in facts.items() if isinstance(fact, SequenceFacts)}
    images = {file: fact for file, fact in facts.items() if isinstance(fact, ImageFacts)}
    # Of a checkpoint, layout and depth are known: what does not suit them is a matter of single files.
    wrong_layout = [] if saved else _wrong_layout(sequences, config)
    whole = [*wrong_layout, *([] if saved else _mixed_depths(images, config))]
    problems |= _of_another_depth(images, saved)
    if not wrong_layout:
        problems |= _unlike_the_others(sequences, saved)
    if config.max_length and config.too_long == "error":
        problems |= {
            file: f"has {fact.length} frames, more than data.max_length={config.max_length}; "
            "cut it, or set data.too_long to truncate or window"
            for file, fact in sequences.items()
            if fact.length > config.max_length
        }
    findings = [of_table(problem) for problem in whole]
    for row in table.rows:
        for name in modalities:
            if problem := problems.get((name, getattr(row, name))):
                findings.append(Finding(row.number, table.columns[name], getattr(row, name), problem))
    return {file: fact for file, fact in facts.items() if file not in problems}, findings


def _wrong_layout(sequences: dict[File, SequenceFacts], config: ManifestConfig) -> list[str]:
    arrays = {file: fact for file, fact in sequences.items() if fact.is_array}
    wide = [(cell, fact) for (_, cell), fact in arrays.items() if fact.length < len(fact.mean)]
    if not wide or len(wide) * 2 <= len(arrays):
        return []
    (cell, fact), other = wide[0], {"TF": "FT", "FT": "TF"}[config.sequence.layout]
    return [
        f"{len(wide)} of {len(arrays)} arrays have fewer frames than features (first {cell}: {fact.length} frames of "
        f"{len(fact.mean)} features, read as data.sequence.layout={config.sequence.layout}); is it {other}? "
        f"Set data.sequence.layout={other}"
    ]


def _mixed_depths(images: dict[File, ImageFacts], config: ManifestConfig) -> Iterator[str]:
    """One range of values cannot be measured for several depths."""
    first: dict[str, str] = {}
    for (_, cell), fact in images.items():
        first.setdefault(fact.depth, cell)
    deep = [depth for depth in first if depth != "uint8"]
    values = {value for fact in images.values() for value in (fact.lowest, fact.highest)}
    if deep and len(values) == 1 and config.image.value_range is None:
        yield f"all images have the one value {values.pop():g}; set data.image.value_range=[black, white]"
    if deep and len(first) > 1 and config.image.value_range is None:
        found = ", ".join(f"{depth} ({cell})" for depth, cell in first.items())
        yield (
            f"images of several depths: {found}; convert them to one, or set data.image.value_range=[black, white], "
            "which is for all that are not uint8"
        )


def _of_another_depth(images: dict[File, ImageFacts], saved: DataSpec | None) -> dict[File, str]:
    """8 bit is 0 to 255, another depth what was measured in training: the same picture would have other values."""
    if saved is None or saved.image_depth is None:
        return {}
    return {
        file: f"holds {fact.depth}, the images that the checkpoint was trained on {saved.image_depth}; convert it, or "
        "train with data.image.value_range=[black, white]"
        for file, fact in images.items()
        if fact.depth != saved.image_depth
    }


def _unlike_the_others(sequences: dict[File, SequenceFacts], saved: DataSpec | None) -> dict[File, str]:
    """Another number of features, or other names of them, than most files have, or than the checkpoint's data."""
    if not sequences:
        return {}
    if saved:
        wanted, whose = len(saved.normalisation["mean"]), "the checkpoint's data have"
        names = saved.feature_names or None
    else:
        wanted, whose = Counter(len(fact.mean) for fact in sequences.values()).most_common(1)[0][0], "most files have"
        named = Counter(fact.columns for fact in sequences.values() if fact.columns and len(fact.columns) == wanted)
        names = named.most_common(1)[0][0] if named else None
    problems = {}
    for file, fact in sequences.items():
        if len(fact.mean) != wanted:
            remedy = "swap its rows and columns" if fact.length == wanted else "give each frame the same features"
            problems[file] = f"has {len(fact.mean)} features, {whose} {wanted}; {remedy}"
        elif names and fact.columns and fact.columns != names:
            problems[file] = (
                f"has the columns {', '.join(fact.columns)}, {whose} {', '.join(names)}; "
                "give each file the same columns in the same order"
            )
    return problems


def _leaks(
    table: Table, splits: Sequence[str | None], facts: dict[File, Facts], modalities: Sequence[str]
) -> Iterator[Finding]:
    """Rows whose file, by its content, is in a split that comes before theirs."""
    home: dict[tuple[str, bytes], tuple[Row, str]] = {}
    remedy = "write one split in both rows" if "split" in table.columns else "give both rows one group"
    ordered = sorted(
        ((row, split) for row, split in zip(table.rows, splits, strict=True) if split),
        key=lambda entry: SPLITS.index(entry[1]),
    )
    for row, split in ordered:
        for name in modalities:
            cell = getattr(row, name)
            if (fact := facts.get((name, cell))) is None:
                continue
            first, its_split = home.setdefault((name, fact.digest), (row, split))
            if its_split != split:
                other = getattr(first, name)
                what = "is" if other == cell else f"has the same content as '{other}',"
                yield Finding(
                    row.number,
                    table.columns[name],
                    cell,
                    f"{what} in {its_split} too (row {first.number}), and this row is in {split}; what is tested must "
                    f"not be trained on: {remedy}, or delete one",
                )
