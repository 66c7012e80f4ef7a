"""Which saved rule each rule of the config continues, after a resume with rules that were moved, changed or removed."""

from typing import Any

from app.learning_rates.rules import Rule


def match_rules(rules: list[Rule], saved: list[dict[str, Any]]) -> tuple[list[tuple[Rule, dict[str, Any]]], list[str]]:
    """The nearest pairs first: those that differ in no setting, then in one, and so on.

    A rule continues one of the same group, monitor and kind only. Where several are equally near, none is guessed.

    Returns the pairs, and for each rule that starts afresh a line that says why.
    """
    differing = {
        (r, s): rule.differing(state)
        for r, rule in enumerate(rules)
        for s, state in enumerate(saved)
        if rule.is_same_kind(state)
    }
    known = {r for r, _ in differing}
    pairs, why = {}, {}
    while differing:
        least = min(differing.values())
        tied = _connected([pair for pair, number in differing.items() if number == least])
        tied_rules, tied_saved = sorted({r for r, _ in tied}), sorted({s for _, s in tied})
        # Rules that differ in nothing are one as good as the other: they keep their order.
        if len(tied_rules) == len(tied_saved) and (least == 0 or len(tied) == 1):
            pairs |= dict(zip(tied_rules, tied_saved, strict=True))
        else:
            why |= {r: _unclear(r, tied, rules, saved) for r in tied_rules}
        differing = {(r, s): n for (r, s), n in differing.items() if r not in tied_rules and s not in tied_saved}
    afresh = []
    for r, rule in enumerate(rules):
        kind = f"{rule.config.rule} on {rule.config.monitor}"
        if r not in known:
            why[r] = f"the checkpoint has no {kind} for it"
        elif r not in pairs:
            why.setdefault(r, f"each {kind} that the checkpoint has for it is nearer to another rule")
        if r in why:
            afresh.append(f"reductions[{rule.index}] for {rule.group} ({why[r]})")
    return [(rules[r], saved[s]) for r, s in sorted(pairs.items())], afresh


def _connected(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first pair, those that share a side with it, those that share one with them, and so on."""
    found = pairs[:1]
    while more := [p for p in pairs if p not in found and any(p[0] == q[0] or p[1] == q[1] for q in found)]:
        found += more
    return found


def _unclear(r: int, tied: list[tuple[int, int]], rules: list[Rule], saved: list[dict[str, Any]]) -> str:
    """Why rule r continues none of the saved rules that it is tied with."""
    candidates = [s for rule, s in tied if rule == r]
    names = " and ".join(f"reductions[{saved[s]['key'].split()[0]}]" for s in candidates)
    if len(candidates) > 1:
        return f"{names} of the checkpoint are equally near to it, so none is continued"
    rivals = " and ".join(f"reductions[{rules[rule].index}]" for rule, s in tied if s == candidates[0])
    return f"{names} of the checkpoint is equally near to {rivals}, so none continues it"
