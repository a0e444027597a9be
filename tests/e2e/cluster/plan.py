"""What is sent, and what must come of each: a function of a seed, so that a schedule can be replayed.

Runs of a few memories, most of them in few rollouts (Zipf), with later attempts, large records, secrets, ids that
are no file names, runs that are sent twice, pairs of runs that contradict each other, workspaces as folders and
archives, and events that no stage can take. Each event has a *label*, by which it is found again everywhere:
its CloudEvents id, or the hash of its bytes where it has none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import made

MEMORIES = (("acme", "support"), ("acme", "code"), ("globex", "support"), ("initech", "ops"))
ZIPF = 1.1
SECRET = "sk-proj-" + "Abcdefgh1234567890" * 2
REDACTED = "[redacted:openai-key]"
BIG_CHARS = 300 * 1024
"""A record of so many characters travels as a claim."""
SUBJECTS = {"conv-2": "ana@example.com", "conv-7": "ben@example.com", "conv-9": "ana@example.com"}
"""Whom a rollout's runs are for. By rollout: a rollout of two subjects may be held by the guards, as it should."""
WORDS = ("ledger", "invoice", "tariff", "parcel", "harbour", "quota", "signal", "meadow")


@dataclass(frozen=True)
class Run:
    """One run and attempt as it is sent, and what must be kept of it."""

    label: str
    project: str
    memory: str
    rollout: str
    run: str
    attempt: int
    line: str
    kept: str
    files: dict[str, str] | None = None
    """What its workspace holds; None: no workspace, or one that can not be taken in."""
    child: bool = False
    """Whether another run called it: then its workspace is always a branch."""
    letters: frozenset[str] = frozenset()
    """Reasons for which the snapshot stage must refuse its workspace."""

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        return self.project, self.memory, self.rollout, self.run, self.attempt


@dataclass(frozen=True)
class Poison:
    """An event that can never take effect, and the reason that must be told."""

    label: str
    reason: str


@dataclass
class Send:
    """One line for the producer. `archive`: what is to be put in the store first, as (project, bytes)."""

    label: str
    raw: bytes
    archive: tuple[str, bytes] | None = None


@dataclass
class Plan:
    runs: dict[str, Run] = field(default_factory=dict)
    poison: dict[str, Poison] = field(default_factory=dict)
    sends: list[Send] = field(default_factory=list)

    @property
    def identities(self) -> dict[tuple, list[Run]]:
        """Runs by what they are recognised by; two of one identity contradict each other."""
        found: dict[tuple, list[Run]] = {}
        for run in self.runs.values():
            found.setdefault(run.identity, []).append(run)
        return found

    def write(self, path: Path) -> None:
        """The sends, as the driver reads them."""
        with open(path, "w") as out:
            for send in self.sends:
                archive = None
                if send.archive:
                    project, body = send.archive
                    archive = [project, body.hex()]
                out.write(json.dumps([send.raw.decode(), archive]) + "\n")


def make(seed: int, *, events: int, rollouts: int, folder: Path) -> Plan:
    """A plan of so many different events; workspaces handed over as folders are written below `folder`."""
    return _Maker(seed, events, rollouts, folder).plan


class _Maker:
    def __init__(self, seed: int, events: int, rollouts: int, folder: Path) -> None:
        self.dice = random.Random(seed)
        self.plan = Plan()
        self.folder = folder
        self.rollouts = [_rollout(number) for number in range(rollouts)]
        self.weights = [1 / (rank + 1) ** ZIPF for rank in range(rollouts)]
        self.kinds = self._kinds(events)
        self.attempts: dict[tuple, int] = {}
        for number, kind in enumerate(self.kinds):
            getattr(self, f"_{kind}")(number)
        self._double()

    def _kinds(self, events: int) -> list[str]:
        """Every kind at least once, then by share; shuffled."""
        shares = {
            **{"again": 0.04, "big": 0.005, "secret": 0.01, "contradiction": 0.01, "child": 0.01},
            **{"workspace": 0.05, "bad_workspace": 0.01, "poison": 0.03},
        }
        kinds = [kind for kind, share in shares.items() for _ in range(max(1, round(events * share)))]
        kinds += ["run"] * (events - len(kinds))
        self.dice.shuffle(kinds)
        # An attempt needs a run before it.
        first = kinds.index("run")
        kinds[0], kinds[first] = kinds[first], kinds[0]
        return kinds

    def _double(self) -> None:
        """Some are sent twice: at once, or much later."""
        sends = list(self.plan.sends)
        doubled = self.dice.sample(sends, max(2, len(sends) // 30))
        for send in doubled:
            at = sends.index(send)
            sends.insert(self.dice.choice((at + 1, self.dice.randrange(at + 1, len(sends) + 1))), send)
        self.plan.sends = sends

    # --- runs -----------------------------------------------------------------------------------------------

    def _run(self, number: int, **more) -> Run:
        (project, memory), rollout = self.dice.choices(self.rollouts, self.weights)[0]
        payload = made.payload(number, text=more.pop("text", None))
        return self._add(number, project, memory, rollout, f"run-{number}", 1, payload, **more)

    def _add(self, number, project, memory, rollout, run, attempt, payload, *, tag="", extra=None, **facts):
        line = json.dumps(payload, separators=(",", ":"))
        label = f"{project}-{run}-{attempt}{tag}"
        one = Run(
            label, project, memory, rollout, run, attempt, line, line.replace(SECRET, REDACTED), **facts
        )
        data = {
            "project": project,
            "memory": memory,
            "conversation_id": rollout,
            "run_id": run,
            "attempt": attempt,
            "record": line,
        }
        if rollout in SUBJECTS:
            data["subject"] = SUBJECTS[rollout]
        self.plan.runs[label] = one
        self._send(label, {**_event(label, number), "data": {**data, **(extra or {})}})
        return one

    def _again(self, number: int) -> None:
        """A later attempt of an earlier run."""
        before = self.dice.choice([one for one in self.plan.runs.values() if one.files is None])
        top = max(one.attempt for one in self.plan.runs.values() if one.identity[:4] == before.identity[:4])
        payload = made.payload(number, text=f"task {number}, again")
        self._add(number, *before.identity[:4], top + 1, payload)

    def _big(self, number: int) -> None:
        words = " ".join(self.dice.choice(WORDS) for _ in range(BIG_CHARS // 7))
        self._run(number, text=words)

    def _secret(self, number: int) -> None:
        self._run(number, text=f"Use {SECRET} for task {number}")

    def _contradiction(self, number: int) -> None:
        """The same run and attempt twice, with other bytes: the later one is refused."""
        first = self._run(number)
        payload = made.payload(number, text="something else happened")
        self._add(number, *first.identity, payload, tag="-rival")

    # --- workspaces -----------------------------------------------------------------------------------------

    def _workspace(self, number: int, **more) -> None:
        files = {
            f"notes/{word}.md": f"{word} of run {number}\n" * self.dice.randrange(1, 40)
            for word in self.dice.sample(WORDS, 3)
        }
        if self.dice.random() < 0.5:
            place = self.folder / f"left-by-{number}"
            for name, text in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text)
            self._run(
                number, files=files, extra={"workspaces": [{"folder": str(place)}], **more}, **_facts(more)
            )
            return
        archive = _tar(files)
        extra = {"workspaces": [{"archive": _claim(archive)}], **more}
        run = self._run(number, files=files, extra=extra, **_facts(more))
        self.plan.sends[-1].archive = (run.project, archive)

    def _child(self, number: int) -> None:
        self._workspace(number, parent_run_id="run-0")

    def _bad_workspace(self, number: int) -> None:
        """A run whose record is fine, and whose workspace can not be taken in."""
        kind = ("folder_refused", "archive_refused", "claim_missing")[number % 3]
        garbage = f"no archive at all {number}".encode()
        workspace = {"folder": "/etc"} if kind == "folder_refused" else {"archive": _claim(garbage)}
        run = self._run(number, extra={"workspaces": [workspace]}, letters=frozenset((kind,)))
        if kind == "archive_refused":
            self.plan.sends[-1].archive = (run.project, garbage)

    # --- poison ---------------------------------------------------------------------------------------------

    def _poison(self, number: int) -> None:
        data = made.data(number, project="acme", memory="support")
        kinds = {
            "bad_json": b'{"run_id": "run-%d", ' % number,
            "invalid_event": {"specversion": "1.0", "id": f"bare-{number}"},
            "unknown_type": {**_event(f"odd-{number}", number), "type": "com.example.other.v1", "data": {}},
            "unknown_version": {
                **_event(f"new-{number}", number),
                "type": "io.runlore.run.completed.v9",
                "data": {},
            },
            "invalid_id": {**_event(f"climbs-{number}", number), "data": {**data, "run_id": "../up"}},
            "invalid_record": {**_event(f"text-{number}", number), "data": {**data, "record": "no record"}},
            "claim_missing": {
                **_event(f"claim-{number}", number),
                "data": {
                    **{name: value for name, value in data.items() if name != "record"},
                    "record_claim": _claim(b"never put %d" % number),
                },
            },
        }
        reason = list(kinds)[len(self.plan.poison) % len(kinds)]
        what = kinds[reason]
        raw = what + b"\n" if isinstance(what, bytes) else _line(what)
        # What the producer can not read goes out as it came, and has no id but that of its bytes.
        named = reason in ("unknown_type", "unknown_version", "invalid_record", "claim_missing")
        label = what["id"] if named else hash_of(raw)
        self.plan.poison[label] = Poison(label, reason)
        self.plan.sends.append(Send(label, raw))

    def _send(self, label: str, event: dict) -> None:
        self.plan.sends.append(Send(label, _line(event)))


def hash_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:32]


def without(plan: Plan, label: str) -> Plan:
    """The plan as if `label` had never been in it: for tests of the judge."""
    runs = {name: run for name, run in plan.runs.items() if name != label}
    return dataclasses.replace(plan, runs=runs)


def _rollout(number: int) -> tuple[tuple[str, str], str]:
    """A memory and the rollout's id; some ids are no file names, some stand in two memories."""
    memory = MEMORIES[number % len(MEMORIES)]
    if number % 17 == 5:
        return memory, f"Case {number}/ü"
    return memory, f"conv-{number - 1 if number % 11 == 3 else number}"


def _facts(more: dict) -> dict:
    return {"child": "parent_run_id" in more}


def _event(label: str, number: int) -> dict:
    return {
        "specversion": "1.0",
        "id": label,
        "source": "/cluster-test",
        "type": "io.runlore.run.completed.v1",
        "time": made.moment(number),
    }


def _line(event: dict) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _claim(body: bytes) -> dict:
    return {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}


def _tar(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()
