"""What the columns of a manifest are for, and the words that have a meaning in their cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from app.messages import closest, nearest
from data.manifest.finding import Finding, of_table, shown

# Role -> the names of columns that say so, whatever their case.
ROLES = {
    "image": ("image", "image_file_name", "image_path"),
    "sequence": (
        "sequence",
        "sequence_file_name",
        "audio",
        "audio_file_name",
        "audio_path",
        "audio_filepath",
        "wav",
    ),
    "label": ("label", "class", "target"),
    "split": ("split", "subset"),
    "group": ("group", "speaker", "speaker_id", "subject"),
    "id": ("id",),
}
BRANCH_OF = {"image": "model.image_branch", "sequence": "model.temporal_branch"}
# For what is missing, whatever their case, in the columns of these roles. In others they are text like any.
MISSING = ("", "na", "nan", "null", "none")
MAY_BE_MISSING = ("image", "sequence", "group")
# Whatever their case.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}


def roles_of_columns(
    names: list[str], chosen: Mapping[str, str], modalities: Sequence[str], needs_label: bool
) -> tuple[dict[str, int], list[Finding]]:
    """Role -> position of its column, and what is wrong with the header and with data.columns (`chosen`).

    For a prediction (not needs_label) split, group and id are no roles, and `chosen` is that of the training.
    """
    findings = []
    roles = [role for role in ROLES if needs_label or role in (*modalities, "label")]
    for name in sorted({name for name in names if names.count(name) > 1}):
        findings.append(of_table(f"the header has {names.count(name)} columns of this name; rename all but one", name))
    optional = () if needs_label else [role for role in ROLES if role not in modalities]
    place, wrong_choices = _chosen_columns(names, chosen, optional)
    findings += wrong_choices
    for role in roles:
        found = [i for i in _named_like(ROLES[role], names) if i not in place.values()]
        if role in chosen or not found or (role in BRANCH_OF and role not in modalities):
            continue
        if len({names[i] for i in found}) > 1:
            listed = " and ".join(f"'{shown(names[i])}'" for i in found)
            remedy = f"say which it is, e.g. data.columns={{{role}: {shown(names[found[-1]])}}}"
            remedy = remedy if needs_label else "rename all but one"
            findings.append(of_table(f"columns {listed} can all be the {role}; {remedy}"))
        place[role] = found[0]
    needed = [*modalities, *(["label"] if needs_label else [])]
    missing = [role for role in needed if role not in place and role not in chosen]
    if missing and not place and any(Path(name).suffix for name in names):
        problem = f"the first row must name the columns, e.g. {','.join(needed)}; it is {_listed(names)}"
        return place, [*findings, of_table(problem)]
    free = [name for i, name in enumerate(names) if i not in place.values()]
    findings += [_missing_column(role, free, modalities, needs_label) for role in missing]
    return {role: i for role, i in place.items() if role not in BRANCH_OF or role in modalities}, findings


def _chosen_columns(
    names: list[str], chosen: Mapping[str, str], optional: Sequence[str]
) -> tuple[dict[str, int], list[Finding]]:
    """
    Args:
        optional: roles whose columns may be absent, as the config is that of the training.
    """
    place: dict[str, int] = {}
    findings = []
    for role, name in chosen.items():
        if role not in ROLES:
            findings.append(of_table(f"data.columns.{shown(role)}: unknown role; {nearest(role, list(ROLES))}"))
            continue
        found = [i for i in range(len(names)) if names[i] == name] or _named_like([name], names)
        if not found and role in optional:
            continue
        if len(found) != 1:
            problem = "there is no such column" if not found else "more than one column is called so"
            near = f"did you mean '{shown(like)}'? " if (like := closest(name, names)) else ""
            problem += f"; {near}the file has {_listed(names)}"
            findings.append(of_table(f"data.columns.{role}: '{shown(name)}': {problem}"))
        elif found[0] in place.values():
            findings.append(of_table(f"data.columns: '{shown(name)}' is given two roles; name one column for each"))
        else:
            place[role] = found[0]
    return place, findings


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:10]) + more


def _named_like(wanted: Sequence[str], names: list[str]) -> list[int]:
    folded = {name.strip().casefold() for name in wanted}
    return [i for i, name in enumerate(names) if name.casefold() in folded]


def _missing_column(role: str, free: list[str], modalities: Sequence[str], needs_label: bool) -> Finding:
    near = next((name for allowed in ROLES[role] if (name := closest(allowed, free))), None)
    columns = f"the file has {_listed(free)}" if free else "the file has no other column"
    columns += f" (is it '{shown(near)}'?)" if near else ""
    remedy = "rename one"
    if needs_label:
        remedy += f", or data.columns={{{role}: {shown(near) if near else 'ITS_NAME'}}}"
    if role in BRANCH_OF and len(modalities) > 1 and needs_label:
        remedy += f", or {BRANCH_OF[role]}=null for a one-branch model"
    elif role in BRANCH_OF and len(modalities) > 1:
        remedy += ", or add it as an empty column: no row then has one"
    return of_table(f"no column for the {role} ({', '.join(ROLES[role])}); {columns}; {remedy}")
