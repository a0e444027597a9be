"""What a person decided of held rollouts, as consolidation reads it: holds, approvals, rejections. Pure.

A hold is an entry of the memory's head: why, since when, for which version of the rollout, and each violation by a key
that names exactly what was shown. An approval is a mark that lifts one hold (by its number) and names keys; only what
it names passes, so what came later is held anew. A rejection is the hold, moved to a new number: an approval of before
lifts nothing any more. A run that comes to a rejected rollout puts it before a person again, and is never taken in
by itself: nothing but the guards would stand between it and what was rejected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from runlore import clock
from runlore.commit import heads, marks
from runlore.memory import guards

VIOLATIONS_KEPT_MAX = 16
"""Violations that a hold keeps; with more, all of them can not be let pass."""
REASON_CHARS_MAX = 300
APPROVED_MAX = 256
"""Keys that stay approved of one rollout; past it what was approved may be held again."""

Keys = Mapping[str, frozenset[str]]
"""Rollout → what a person let pass of it."""


def hold(
    head: heads.Head, violations: Sequence[guards.Violation], number: int, revision: int
) -> dict[str, Any]:
    """The entry of a rollout that is held from now on."""
    first = [f"{one.kind}: {one.message}" for one in violations][:5]
    return {
        "counter": head.counter,
        "kind": "guard",
        "reason": "; ".join(first),
        "at": clock.now_iso(),
        "hold": number,
        "revision": revision,
        "violations": [[one.kind, one.message, one.key] for one in violations[:VIOLATIONS_KEPT_MAX]],
        "violations_total": len(violations),
    }


def rejected(entry: Mapping[str, Any], *, counter: int, reason: str, number: int) -> dict[str, Any]:
    """The entry of a rollout that stays out as it stands at `counter`."""
    why = {"at": clock.now_iso(), "reason": reason[:REASON_CHARS_MAX]}
    return {**entry, "counter": max(counter, seen(entry)), "hold": number, "rejected": why}


def is_rejected(entry: Mapping[str, Any]) -> bool:
    return "rejected" in entry


def waiting(held: Mapping[str, Any]) -> list[str]:
    """The rollouts that wait for a person: all that are held, but for the rejected ones."""
    return sorted(name for name, entry in held.items() if not is_rejected(entry))


def has_new_run(entry: Mapping[str, Any], head: heads.Head) -> bool:
    """Whether a rejected rollout has a run that whoever rejected it did not see."""
    return is_rejected(entry) and head.counter > int(entry["counter"])


def is_undecided(entry: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether this run (as the rollout's head tells it) came after its rollout was rejected, and waits to be judged."""
    return is_rejected(entry) and int(run["since"]) > int(entry["counter"])


def seen_in(held: Mapping[str, Any], inputs: Mapping[str, heads.Head]) -> dict[str, int]:
    """Held rollouts that have runs which the head does not know of → the counter that they stand at.

    Noted in the head before their mark is deleted. *Otherwise:* a rejection that was decided before such a run, and
    lands after its mark is gone, leaves a run that nobody has judged and nothing says waits.
    """
    return {
        name: head.counter
        for name, head in inputs.items()
        if name in held and not is_rejected(held[name]) and head.counter > seen(held[name])
    }


def seen(entry: Mapping[str, Any]) -> int:
    """The counter of the rollout that a hold knows of."""
    return int(entry.get("seen", entry["counter"]))


def again(entry: Mapping[str, Any]) -> guards.Violation:
    """Why a rejected rollout with a new run is held."""
    told = entry["rejected"]
    message = f"it was rejected on {told['at'][:10]} ({told['reason']}); a run came since"
    return guards.Violation("rejected", message, (), f"rejected {entry['hold']}")


def keys_of(entry: Mapping[str, Any]) -> list[str]:
    """The keys of a hold that a person may let pass."""
    return sorted({key for kind, _, key in entry.get("violations", ()) if key and kind in guards.SOFT})


def let_pass(body: Mapping[str, Any], found: Iterable[marks.Mark]) -> dict[str, frozenset[str]]:
    """What may pass: what was approved before, and what these marks approve of present holds."""
    out = {name: frozenset(one["keys"]) for name, one in body.get("approved", {}).items()}
    held = body.get("held", {})
    for mark in found:
        for name, given in mark.approves.items():
            if held.get(name, {}).get("hold") == mark.releases.get(name):
                out[name] = out.get(name, frozenset()) | frozenset(given)
    return out


def left(
    violations: Iterable[guards.Violation], passes: Keys, rollouts: Collection[str]
) -> list[guards.Violation]:
    """The violations that nobody let pass for any of `rollouts`, or of those that are behind the violation."""

    def passed(one: guards.Violation) -> bool:
        if one.kind not in guards.SOFT or not one.key:
            return False
        return any(one.key in passes.get(name, ()) for name in {*rollouts, *one.rollouts})

    return [one for one in violations if not passed(one)]


def against(
    violations: Iterable[guards.Violation], passes: Keys, name: str, accepted: Collection[str]
) -> list[guards.Violation]:
    """What a hold of `name` says: all that is found, but for what was let pass of others.

    Also what was approved of it before: its next approval is of all that is shown, or the two would take turns.
    """
    others = {one: keys for one, keys in passes.items() if one != name}
    return left(violations, others, [one for one in accepted if one != name])


def kept(body: Mapping[str, Any], passes: Keys, present: Collection[str]) -> dict[str, Any]:
    """What stays approved with the memory: the keys of rollouts that have notes in it.

    Without it the next run of an approved rollout, which is judged with all its runs, would be held for the same line.
    """
    before = body.get("approved", {})
    now = clock.now_iso()
    return {
        name: {"keys": lasting, "at": before.get(name, {}).get("at", now)}
        for name in sorted(passes)
        # The others are of one change, which is done.
        if name in present
        and (lasting := sorted(key for key in passes[name] if " " not in key)[:APPROVED_MAX])
    }


def told(
    found: Iterable[marks.Mark], body: Mapping[str, Any], accepted: Collection[str]
) -> list[dict[str, Any]]:
    """The approvals that a revision took rollouts in by, as it tells them."""
    held, out = body.get("held", {}), {}
    for mark in found:
        for name in mark.releases:
            if name in accepted and held.get(name, {}).get("hold") == mark.releases[name]:
                kinds = sorted(
                    {
                        kind
                        for kind, _, key in held[name].get("violations", ())
                        if key in mark.approves.get(name, ())
                    }
                )
                out[name] = {"rollout": name, "reason": mark.reason, "let_pass": kinds}
    return [out[name] for name in sorted(out)]
