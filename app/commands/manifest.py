"""Your own data, before any training: is a table of files fit to be trained on?

python -m app.commands.manifest check my/table.csv
python -m app.commands.manifest check my/table.csv data.sequence.layout=FT model.image_branch=null
"""

import argparse
import sys
from collections import Counter

import numpy as np

from app.commands.root_config import load_config, modalities_of
from app.messages import format_table, run_command, survive_lost_output
from data.manifest.cache import ImageFacts, SequenceFacts
from data.manifest.check import Checked, check
from data.manifest.config import ManifestConfig
from data.spec import SPLITS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check"], help="say what a table holds, and all that is wrong with it")
    parser.add_argument("path", metavar="PATH", help="the table or folder that is checked")
    parser.add_argument("--config", metavar="YAML", default="configs/manifest.yaml", help="how data are read")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the config")
    args = parser.parse_intermixed_args(arguments)
    return run_command(lambda: check_manifest(args.path, args.config, args.overrides), debug=args.debug)


def check_manifest(manifest: str, config_path: str, overrides: list[str]) -> int:
    """Returns 2 where there is a finding."""
    config, _ = load_config(config_path, [f"data.manifest={manifest}", *overrides])
    if not isinstance(config.data, ManifestConfig):
        raise ValueError(
            f"data.source: found {config.data.source} in {config_path}; give a config with source: manifest"
        )
    checked = check(config.data, modalities_of(config.model))
    print(describe(checked), *(f"note: {note}" for note in checked.notes), sep="\n")
    for finding in checked.findings:
        print(f"error: {checked.table.line(finding)}", file=sys.stderr)
    return 2 if checked.findings else 0


def describe(checked: Checked) -> str:
    """Rows by split, class and modality; lengths, sizes; what is there twice."""
    table = checked.table
    roles = ", ".join(f"{role}: {column}" for role, column in table.columns.items())
    lines = [f"{table.path}: {len(table.rows):,} rows; {roles}", "", _by_class(checked), "", _by_modality(checked), ""]
    lines += _sequences([fact for fact in checked.facts.values() if isinstance(fact, SequenceFacts)])
    lines += _images([fact for fact in checked.facts.values() if isinstance(fact, ImageFacts)])
    contents = Counter((file[0], fact.digest) for file, fact in checked.facts.items())
    if copies := sum(count - 1 for count in contents.values()):
        lines.append(f"files with the same content as another: {copies:,}")
    bad = len(checked.bad_rows())
    lines.append(f"findings: {len(checked.findings):,}, in {bad:,} rows" if checked.findings else "findings: none")
    return "\n".join(lines)


def _counts(title: str, of_rows: list[tuple[str, str | None]], shown: int = 40) -> str:
    """A table of how often each kind stands in each split; of more than `shown` kinds, the rarest in training."""
    counts = Counter(of_rows)
    kinds = list(dict.fromkeys(kind for kind, _ in of_rows))
    if len(kinds) > shown:
        kinds.sort(key=lambda kind: counts[kind, "train"])
        title += f" (the {shown} rarest of {len(kinds):,})"
    rows = [(kind, *(f"{counts[kind, split]:,}" for split in SPLITS)) for kind in kinds[:shown]]
    totals = (f"{sum(n for (_, own), n in counts.items() if own == split):,}" for split in SPLITS)
    return format_table([(title, *SPLITS), *rows, ("all", *totals)])


def _by_class(checked: Checked) -> str:
    order = {name: i for i, name in enumerate(checked.class_names)}
    pairs = zip(checked.table.rows, checked.splits, strict=True)
    labelled = sorted(
        ((row.label or "(none)", split) for row, split in pairs), key=lambda entry: order.get(entry[0], len(order))
    )
    return _counts("class", labelled)


def _by_modality(checked: Checked) -> str:
    kinds = {(True, True): "image and sequence", (True, False): "image only", (False, True): "sequence only"}
    pairs = zip(checked.table.rows, checked.splits, strict=True)
    return _counts(
        "has", [(kinds.get((bool(row.image), bool(row.sequence)), "neither"), split) for row, split in pairs]
    )


def _sequences(facts: list[SequenceFacts]) -> list[str]:
    if not facts:
        return []
    least, tenth, median, ninetieth, most = np.quantile([fact.length for fact in facts], [0, 0.1, 0.5, 0.9, 1])
    features = ", ".join(f"{n}" for n in sorted({len(fact.mean) for fact in facts}))
    return [
        f"sequences: {len(facts):,} files; features: {features}; frames: {least:.0f} to {most:.0f}, "
        f"median {median:.0f}, 10 % below {tenth:.0f}, 10 % above {ninetieth:.0f}"
    ]


def _images(facts: list[ImageFacts]) -> list[str]:
    if not facts:
        return []
    sizes = Counter((fact.width, fact.height) for fact in facts)
    commonest = ", ".join(f"{width} x {height} ({n:,})" for (width, height), n in sizes.most_common(3))
    more = f" and {len(sizes) - 3:,} other sizes" if len(sizes) > 3 else ""
    depths = ", ".join(f"{depth} ({n:,})" for depth, n in Counter(fact.depth for fact in facts).most_common())
    lowest, highest = min(fact.lowest for fact in facts), max(fact.highest for fact in facts)
    return [f"images: {len(facts):,} files; {commonest}{more}; {depths}; values {lowest:g} to {highest:g}"]


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
