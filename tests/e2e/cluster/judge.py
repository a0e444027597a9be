"""The judge: what was sent and acknowledged, against what is there. Pure, and with no line of our own code.

What objects look like is read from docs/DESIGN.md and the published formats, not from the modules that write them.
`judge` gives complaints in words, none where all is well; `tests/e2e/test_cluster_judge.py` shows that each check
can complain.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import ledger as ledgers
from cluster import plan as plans
from cluster import reading

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden"))

import snapshot_reader

ONCE_WRITTEN = ("records", "outcomes", "manifests", "packs", "snapshots", "blobs", "claims")
"""Kinds of which no object may ever get other bytes, or go (nothing is swept here)."""
KINDS = (*ONCE_WRITTEN, *reading.HEADS, "marks")
HASH = re.compile(r"(?<=\[redacted:openai-key):[0-9a-f]{12}\]")
"""The hash in a placeholder: under a key that the deployment draws, so no plan can know it."""
_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def judge(plan: plans.Plan, ledger: ledgers.Ledger, world: reading.World) -> list[str]:
    """Every complaint."""
    return list(Case(plan, ledger, world).complaints())


class Case:
    """One plan, its ledger and what came of it."""

    def __init__(self, plan: plans.Plan, ledger: ledgers.Ledger, world: reading.World) -> None:
        self.plan, self.world = plan, world
        self.objects = world.objects
        self.tried: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        for number, times in ledger.tried.items():
            self.tried[plan.sends[number].label] += times
        for number, times in ledger.acknowledged.items():
            self.acknowledged[plan.sends[number].label] += times
        self.letters = letters_of(world.dead)
        self.at = {(one.partition, one.offset): label_of(one) for one in world.runs}
        """Where each event stands on the bus: what stands there must take effect, acknowledged or not."""
        self.there = self.acknowledged.keys() | set(self.at.values())
        self.records = {key: _record(body) for key, body in self._of("records")}
        self.heads = {key: json.loads(body) for key, body in self._of(*reading.HEADS)}

    def complaints(self) -> Iterator[str]:
        yield from self.what_was_acknowledged_is_on_the_bus()
        yield from self.nothing_was_ever_overwritten()
        yield from self.heads_move_by_one_and_never_go()
        yield from self.every_run_is_recorded_once_with_its_bytes()
        yield from self.nothing_is_there_that_was_not_sent()
        for project, memory in {run.identity[:2]: None for run in self.plan.runs.values()}:
            yield from self.every_run_of_a_memory_reaches_an_end(project, memory)
        yield from self.every_workspace_is_a_version_or_a_branch()
        yield from self.every_poison_event_is_dead_with_its_reason()
        yield from self.no_work_is_left()

    def _of(self, *kinds: str) -> list[tuple[str, bytes]]:
        return [(key, body) for key, body in self.objects.items() if key.split("/")[1] in kinds]

    # --- the bus ----------------------------------------------------------------------------------------------

    def what_was_acknowledged_is_on_the_bus(self) -> Iterator[str]:
        found = Counter(self.at.values())
        for label in {send.label for send in self.plan.sends}:
            if not self.acknowledged[label] <= found[label] <= self.tried[label]:
                yield (
                    f"{label}: {found[label]} messages, but {self.acknowledged[label]} acknowledged "
                    f"of {self.tried[label]} tries"
                )
        for label in found.keys() - {send.label for send in self.plan.sends}:
            yield f"{label}: a message that nobody sent"

    # --- objects and their history ----------------------------------------------------------------------------

    def nothing_was_ever_overwritten(self) -> Iterator[str]:
        for key, versions in self.world.versions.items():
            kind = key.split("/")[1]
            if key.startswith("_operations/"):
                continue  # What workers say of themselves is no project's.
            if kind not in KINDS:
                yield f"{key}: a kind of object that nobody knows"
            if kind in ONCE_WRITTEN:
                if any(one.deleted for one in versions):
                    yield f"{key} was deleted"
                if len({one.etag for one in versions if not one.deleted}) > 1:
                    yield f"{key} was overwritten with other bytes"
            if kind in ("records", "outcomes", "marks") and sum(not one.deleted for one in versions) > 1:
                # Put if absent: a second write of even the same bytes may not be.
                yield f"{key} was written {len(versions)} times"

    def heads_move_by_one_and_never_go(self) -> Iterator[str]:
        for key, versions in self.world.versions.items():
            if key.split("/")[1] not in reading.HEADS:
                continue
            if any(one.deleted for one in versions):
                yield f"head {key} was deleted"
            counters = [json.loads(one.body)["counter"] for one in versions if one.body is not None]
            if counters != list(range(1, len(counters) + 1)):
                yield f"head {key} moved through {counters}"

    # --- records ----------------------------------------------------------------------------------------------

    def every_run_is_recorded_once_with_its_bytes(self) -> Iterator[str]:
        found: dict[tuple, list[str]] = {}
        for key, (meta, _) in self.records.items():
            found.setdefault(_identity(meta), []).append(key)
        for identity, runs in self.plan.identities.items():
            name = "/".join(map(str, identity))
            keys = found.get(identity, [])
            if not any(run.label in self.there for run in runs) and not keys:
                continue
            if len(keys) != 1:
                yield f"{name} was sent and has {len(keys)} records"
                continue
            meta, line = self.records[keys[0]]
            kept = [run for run in runs if run.label == meta["event"]["id"]]
            if keys[0] != record_key(*identity):
                yield f"{name} lies at {keys[0]}"
            if not kept or HASH.sub("]", line) != kept[0].kept:
                yield f"{name}: its record has other bytes than were sent"
            for run in runs:
                yield from self._letters_of(run.label, run.letters if run in kept else {"run_conflict"})

    def _letters_of(self, label: str, reasons: Iterable[str]) -> Iterator[str]:
        """A letter for each place where the event stands on the bus and each reason, and no other."""
        places = [place for place, at in self.at.items() if at == label]
        expected = {(reason, *place) for reason in reasons for place in places}
        found = self.letters.get(label, set())
        if found != expected:
            yield f"{label}: dead as {sorted(found)}, not as {sorted(expected)}"

    def nothing_is_there_that_was_not_sent(self) -> Iterator[str]:
        sent = {run.identity for run in self.plan.runs.values() if self.tried[run.label]}
        for key, (meta, _) in self.records.items():
            if _identity(meta) not in sent:
                yield f"{key} is a record that nobody sent"
        aliases = {(project, memory, alias(rollout), alias(run)) for project, memory, rollout, run, _ in sent}
        for key, head in self.heads.items():
            if key.split("/")[1] == "rollouts":
                for run in head["runs"]:
                    if (head["project"], head["memory"], head["rollout"], run) not in aliases:
                        yield f"head {key} has run {run}, which nobody sent"
        bodies = {run.line.encode() for run in self.plan.runs.values()}
        bodies |= {send.archive[1] for send in self.plan.sends if send.archive}
        for key, body in self._of("claims"):
            if body not in bodies:
                yield f"{key} are bytes that nobody sent"
        for key, body in self.objects.items():
            if plans.SECRET.encode() in body and key.split("/")[1] != "claims":
                yield f"{key} holds a secret"

    # --- memories ---------------------------------------------------------------------------------------------

    def every_run_of_a_memory_reaches_an_end(self, project: str, memory: str) -> Iterator[str]:
        where = f"{project}/{memory}"
        head = self.heads.get(f"{project}/memories/{_spread(memory)}/{memory}.json")
        mine = [run for run in self.plan.runs.values() if run.identity[:2] == (project, memory)]
        if head is None:
            if any(run.label in self.there for run in mine):
                yield f"{where} has no head"
            return
        try:
            line = list(self._line(project, memory, head))
            coverage = self._map(project, line[0], "coverage")
        except (KeyError, ValueError, AssertionError) as exc:
            yield f"{where}: its revisions can not be read: {type(exc).__name__} {exc}"
            return
        numbers = [one["revision"] for one in line]
        if numbers != list(range(len(numbers), 0, -1)):
            yield f"{where}: revisions {numbers} are no line"
        covered = Counter(
            (covers["rollout"], run, attempt)
            for one in line
            for covers in one["covers"]
            for run, attempt in covers["runs"]
        )
        yield from (
            f"{where}: {one} was covered {times} times" for one, times in covered.items() if times > 1
        )
        known = set()
        for identity, runs in self.plan.identities.items():
            if identity[:2] == (project, memory):
                _, _, rollout, run, attempt = identity
                known.add((alias(rollout), alias(run), attempt))
                if any(one.label in self.there for one in runs):
                    yield from self._end(identity, head, coverage, covered)
        for one in covered.keys() - known:
            yield f"{where}: covers {one}, which nobody sent"

    def _end(
        self, identity: tuple, memory_head: Mapping, coverage: Mapping, covered: Mapping
    ) -> Iterator[str]:
        """The end of one run: superseded, held, or consolidated once."""
        project, memory, rollout, run, attempt = identity
        name, short = "/".join(map(str, identity)), alias(rollout)
        spread = _spread(f"{memory}/{short}")
        head = self.heads.get(f"{project}/rollouts/{spread}/{memory}/{short}.json")
        entry = head["runs"].get(alias(run)) if head else None
        if entry is None:
            yield f"{name} is not in its rollout's head"
            return
        attempts = {entry["attempt"]: entry["received"]}
        attempts |= {at: received for at, received, _ in entry.get("earlier", ())}
        known = [plans.hash_of(one.line.encode()) for one in self.plan.identities[identity]]
        if attempts.get(attempt) not in known:
            yield f"{name}: its rollout's head has attempts {sorted(attempts)}, with other bytes or without this"
        elif entry["attempt"] > attempt:
            top = (project, memory, rollout, run, entry["attempt"])
            if top not in self.plan.identities:
                yield f"{name} is superseded by an attempt that nobody sent"
        elif short not in memory_head.get("held", {}):
            if coverage.get(short, {"counter": 0})["counter"] < entry["since"]:
                yield f"{name} is not covered by the last revision"
            if covered[short, alias(run), attempt] != 1:
                yield f"{name} was covered {covered[short, alias(run), attempt]} times"

    def _line(self, project: str, memory: str, head: Mapping) -> Iterator[dict]:
        """Manifests from the head's back to the first, each verified against its name."""
        number, sha256 = head["revision"], head["manifest"]
        while sha256:
            key = f"{project}/manifests/{_spread(memory)}/{memory}/{number:012d}-{sha256}"
            body = self.objects[key]
            assert hashlib.sha256(body).hexdigest() == sha256, f"{key} has other bytes"
            manifest = json.loads(body)
            yield manifest
            parent = manifest["parent"] or {"revision": 0, "manifest": None}
            number, sha256 = parent["revision"], parent["manifest"]

    def _map(self, project: str, manifest: Mapping, name: str) -> dict[str, Any]:
        """One of a manifest's maps: its pages, found in its packs, verified against their names."""
        frames: dict[str, bytes] = {}
        for pack in manifest["packs"]:
            body = self.objects[f"{project}/packs/{pack['sha256'][:2]}/{pack['sha256']}"]
            assert hashlib.sha256(body).hexdigest() == pack["sha256"], (
                f"pack {pack['sha256']} has other bytes"
            )
            (length,) = struct.unpack(">I", body[-4:])
            for frame, (at, size) in json.loads(zlib.decompress(body[-4 - length : -4])).items():
                frames[frame] = body[at : at + size]
        found: dict[str, Any] = {}
        for page in filter(None, manifest["maps"][name]["pages"]):
            content = zlib.decompress(frames[page])
            assert hashlib.sha256(content).hexdigest() == page, f"page {page} has other bytes"
            found |= json.loads(content)
        return found

    # --- workspaces -------------------------------------------------------------------------------------------

    def every_workspace_is_a_version_or_a_branch(self) -> Iterator[str]:
        left = {run.identity: run for run in self.plan.runs.values() if run.files is not None}
        with tempfile.TemporaryDirectory() as folder:
            for key, body in self._of("snapshots", "blobs"):
                path = Path(folder) / "store" / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)
            for number, run in enumerate(left.values()):
                if run.label in self.there:
                    yield from self._workspace(run, Path(folder), number)
        sent = {(run.project, alias(run.rollout), alias(run.run)) for run in left.values()}
        for key, head in self.heads.items():
            if key.split("/")[1] == "workspaces":
                moved = [head["moved_by"]["run"]] if "moved_by" in head else []
                for run in [*moved, *head.get("branches", {})]:
                    if (head["project"], head["rollout"], run) not in sent:
                        yield f"head {key} has run {run}, which left no workspace"

    def _workspace(self, run: plans.Run, folder: Path, number: int) -> Iterator[str]:
        name, short = alias(run.run), alias(run.rollout)
        place = f"{_spread(short)}/{short}/main"
        head = self.heads.get(f"{run.project}/workspaces/{place}.json", {})
        outcome = self.objects.get(f"{run.project}/outcomes/{place}/{name}.{run.attempt:06d}")
        branch = head.get("branches", {}).get(name, {})
        versions = [*head.get("versions", []), {"by": head.get("moved_by", {}), "ref": head.get("ref")}]
        made = {(one["by"].get("run"), one["by"].get("attempt")): one["ref"] for one in versions}
        if outcome is not None:
            found = json.loads(outcome)
            state, ref = found["state"], found["ref"]
        elif (name, run.attempt) in made:
            state, ref = "moved", made[name, run.attempt]
        elif branch.get("attempt") == run.attempt:
            state, ref = "branched", branch["ref"]
        else:
            yield f"{run.label}: its workspace is neither a version nor a branch"
            return
        if run.child and state != "branched":
            yield f"{run.label} was called by another run, and {state}"
        into = folder / f"restored-{number}"
        try:
            snapshot_reader.restore(str(folder / "store"), run.project, ref, str(into))
        except (AssertionError, OSError, KeyError, ValueError) as exc:
            yield f"{run.label}: its workspace can not be restored: {type(exc).__name__} {exc}"
            return
        files = {str(path.relative_to(into)): path.read_text() for path in into.rglob("*") if path.is_file()}
        if files != run.files:
            yield f"{run.label}: its workspace holds other files than the run left"

    # --- dead letters -----------------------------------------------------------------------------------------

    def every_poison_event_is_dead_with_its_reason(self) -> Iterator[str]:
        for label, poison in self.plan.poison.items():
            yield from self._letters_of(label, [poison.reason])
        for label in self.letters.keys() - self.plan.poison.keys() - self.plan.runs.keys():
            yield f"{label}: a dead letter of an event that nobody sent"
        yield from self._letters_have_one_identity()

    def _letters_have_one_identity(self) -> Iterator[str]:
        for letter in self.world.dead:
            text = {name: raw.decode() for name, raw in letter.headers.items() if name.startswith("rl_")}
            where = f"{text['rl_topic']}/{text['rl_partition']}/{text['rl_offset']}"
            names = {
                hashlib.sha256(f"{where}{stage}".encode()).hexdigest()[:16] for stage in ("", "/snapshot")
            }
            if text["rl_dead"] not in names:
                yield f"letter {text['rl_dead']} is not the one of {where}"
            if self.at.get((int(text["rl_partition"]), int(text["rl_offset"]))) != label_of(letter):
                yield f"letter {text['rl_dead']} is of another event than stood at {where}"

    def no_work_is_left(self) -> Iterator[str]:
        for key, _ in self._of("marks"):
            yield f"{key}: a mark is left"


def letters_of(dead: list[reading.Message]) -> dict[str, set[tuple[str, int, int]]]:
    """Letters by the label of their event: reason, and where the event stood. A letter that came twice is one."""
    found: dict[str, set[tuple[str, int, int]]] = {}
    for one in dead:
        headers = one.headers
        where = (int(headers["rl_partition"]), int(headers["rl_offset"]))
        found.setdefault(label_of(one), set()).add((headers["rl_reason"].decode(), *where))
    return found


def label_of(message: reading.Message) -> str:
    return (
        message.headers["ce_id"].decode()
        if "ce_id" in message.headers
        else plans.hash_of(message.value or b"")
    )


def alias(original: str) -> str:
    """The file-safe name of an id (docs/DESIGN.md)."""
    if _SAFE.fullmatch(original) and not original.startswith("rl-"):
        return original
    readable = re.sub(r"[^a-z0-9]+", "-", original.lower().encode("ascii", "ignore").decode())[:40].strip("-")
    return f"rl-{readable}-{hashlib.sha256(original.encode()).hexdigest()[:32]}"


def record_key(project: str, memory: str, rollout: str, run: str, attempt: int) -> str:
    place = f"{memory}/{alias(rollout)}"
    return f"{project}/records/{_spread(place)}/{place}/{alias(run)}.{attempt:06d}"


def _spread(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:2]


def _record(body: bytes) -> tuple[dict, str]:
    """Metadata and line of a record; what is none has neither."""
    try:
        first, line = body.decode("ascii").split("\n", 1)
        return json.loads(first), line.removesuffix("\n")
    except ValueError:
        return {}, ""


def _identity(meta: Mapping) -> tuple:
    ids = meta.get("ids", {})
    return (
        meta.get("project"),
        meta.get("memory"),
        ids.get("original"),
        ids.get("run_id"),
        meta.get("attempt"),
    )
