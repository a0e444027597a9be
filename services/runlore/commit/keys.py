"""Where each kind of object lies: `<project>/<kind>/<2 hex>/…`.

Project first, so that one IAM prefix and one LIST hold a tenant; two hex digits of a hash second, so that
requests spread over a bucket's partitions. Every part is lower-case and file-safe (`events/ids.py`), so a
directory on a case-insensitive file system can hold them too.
"""

from __future__ import annotations

import hashlib

ROLLOUTS, RECORDS, MARKS, MEMORIES = "rollouts", "records", "marks", "memories"
MANIFESTS, PACKS, CLAIMS = "manifests", "packs", "claims"
SIDES = "sides"
SNAPSHOTS, BLOBS = "snapshots", "blobs"
WORKSPACES, OUTCOMES = "workspaces", "outcomes"
AUDIT = "audit"
REQUESTS = "requests"
ANSWERS, ASKS, JOINS, SPEND = "answers", "asks", "joins", "spend"
ERASURES = "erasures"
DEAD_LETTERS = "_dead"
"""Not a project: no project's name begins with '_'."""
OPERATIONS = "_operations"
"""Not a project either: what belongs to the whole deployment, in the kinds below and `AUDIT`."""
PAUSES, WORKERS, PROBES = "pauses", "workers", "probes"
ACCESS, SECRETS, REDACTION = "keys", "secrets", "redaction"
ADMIN, USED, LIMITS, ALERTS = "admin", "used", "limits", "alerts"
ACTS, SEEDS = "acts", "seeds"
RESERVED = (DEAD_LETTERS, OPERATIONS)
KINDS = (
    SIDES,
    *(ROLLOUTS, RECORDS, MARKS, MEMORIES, MANIFESTS, PACKS, CLAIMS),
    *(SNAPSHOTS, BLOBS, WORKSPACES, OUTCOMES, AUDIT, REQUESTS, ANSWERS, ASKS, JOINS, SPEND, ERASURES),
)
"""Every kind that a project may hold."""


def spread(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:2]


def rollout_head(project: str, memory: str, rollout: str) -> str:
    return f"{project}/{ROLLOUTS}/{spread(f'{memory}/{rollout}')}/{memory}/{rollout}.json"


def records(project: str, memory: str, rollout: str) -> str:
    """The prefix of a rollout's records."""
    return f"{project}/{RECORDS}/{spread(f'{memory}/{rollout}')}/{memory}/{rollout}/"


def record(project: str, memory: str, rollout: str, run: str, attempt: int) -> str:
    return f"{records(project, memory, rollout)}{run}.{attempt:06d}"


def record_name(key: str) -> tuple[str, int]:
    """Run alias and attempt of a record's key."""
    run, _, attempt = key.rpartition("/")[2].rpartition(".")
    return run, int(attempt)


def memory_head(project: str, memory: str) -> str:
    return f"{project}/{MEMORIES}/{spread(memory)}/{memory}.json"


def side_head(project: str, memory: str, name: str) -> str:
    """The head of a side line of a memory. Its manifests and packs lie among those of the memory itself."""
    return f"{project}/{SIDES}/{spread(f'{memory}/{name}')}/{memory}/{name}.json"


def marks(project: str, memory: str, kind: str = MARKS) -> str:
    """The prefix of a memory's marks; of those that wait for a model's summary with `ASKS`, for a model's
    consolidation with `JOINS`."""
    return f"{project}/{kind}/{spread(memory)}/{memory}/"


def mark(project: str, memory: str, name: str, kind: str = MARKS) -> str:
    return f"{marks(project, memory, kind)}{name}.json"


def manifest(project: str, memory: str, revision: int, sha256: str) -> str:
    """A manifest is named by its revision and its content, so that a LIST finds a revision by its number."""
    return f"{manifests(project, memory)}{revision:012d}-{sha256}"


def manifests(project: str, memory: str, revision: int | None = None) -> str:
    """The prefix of a memory's manifests, or of those written for one revision."""
    prefix = f"{project}/{MANIFESTS}/{spread(memory)}/{memory}/"
    return prefix if revision is None else f"{prefix}{revision:012d}-"


def pack(project: str, sha256: str) -> str:
    return f"{project}/{PACKS}/{sha256[:2]}/{sha256}"


def snapshot_pack(project: str, pack: str) -> str:
    """Where a pack of a snapshot lies: `<pack>` holds data alone, `<snapshot>/<pack>` its snapshot's root too."""
    kind = SNAPSHOTS if "/" in pack else BLOBS
    return f"{project}/{kind}/{pack[:2]}/{pack}"


def snapshot_roots(project: str, snapshot: str) -> str:
    """The prefix of the root packs of one snapshot: usually one, more where writers with other bases met."""
    return f"{project}/{SNAPSHOTS}/{snapshot[:2]}/{snapshot}/"


def snapshot_head(project: str, rollout: str, agent: str) -> str:
    """The head of a workspace's line. Apart from the packs, so that a LIST of heads costs what heads there are."""
    return f"{snapshot_heads(project, rollout)}{agent}.json"


def snapshot_heads(project: str, rollout: str) -> str:
    """The prefix of the heads of a rollout's lines."""
    return f"{project}/{WORKSPACES}/{spread(rollout)}/{rollout}/"


def outcomes(project: str, rollout: str, agent: str) -> str:
    """The prefix of what became of a line's runs that its head does not name any more."""
    return f"{project}/{OUTCOMES}/{spread(rollout)}/{rollout}/{agent}/"


def outcome(project: str, rollout: str, agent: str, run: str, attempt: int) -> str:
    return f"{outcomes(project, rollout, agent)}{run}.{attempt:06d}"


def claim(project: str, sha256: str) -> str:
    return f"{project}/{CLAIMS}/{sha256[:2]}/{sha256}"


def dead_letter(letter: str) -> str:
    """Where the bytes of a dead letter lie that is too large for its topic."""
    return f"{DEAD_LETTERS}/{spread(letter)}/{letter}"


def audit(place: str) -> str:
    """The prefix of what people changed in a project, or everywhere, as it was kept before acts were chained."""
    return f"{place}/{AUDIT}/"


def audit_entry(place: str, month: str, entry: str, part: str) -> str:
    """One half of an act, `begun` or `ended`, as it was kept before acts were chained."""
    return f"{audit(place)}{month}/{entry}.{part}.json"


def pauses() -> str:
    """The prefix of every pause, of all projects: each worker lists it every few seconds."""
    return f"{OPERATIONS}/{PAUSES}/"


def pause(stage: str, project: str | None = None, memory: str | None = None) -> str:
    """What holds a stage back: everywhere, for a project, or for one memory."""
    if project is None:
        return f"{pauses()}{stage}/stage.json"
    if memory is None:
        return f"{pauses()}{stage}/project/{project}.json"
    return f"{pauses()}{stage}/memory/{project}/{memory}.json"


def workers() -> str:
    """The prefix of what each worker says of itself."""
    return f"{OPERATIONS}/{WORKERS}/"


def worker(name: str) -> str:
    return f"{workers()}{name}.json"


def probe(name: str) -> str:
    """Where `doctor` tries what a store can do."""
    return f"{OPERATIONS}/{PROBES}/{name}"


def access_keys() -> str:
    """The prefix of the keys of the lookup service, of all projects."""
    return f"{OPERATIONS}/{ACCESS}/"


def access_key(key_id: str) -> str:
    return f"{access_keys()}{key_id}.json"


def organization() -> str:
    """The head that says who administers the deployment, its projects, and which of their accounts hold which keys."""
    return f"{OPERATIONS}/{ADMIN}/organization.json"


def log() -> str:
    """The prefix of the log of what was administered."""
    return f"{OPERATIONS}/{ADMIN}/log/"


def log_entry(number: int, sha256: str) -> str:
    """One entry, by its number and its content, so that a LIST is in order and a writer that lost harms nobody."""
    return f"{log()}{number:012d}-{sha256}.json"


def acts_head() -> str:
    """The head of the log of what people did."""
    return f"{OPERATIONS}/{ACTS}/head.json"


def acts() -> str:
    """The prefix of the entries of that log."""
    return f"{OPERATIONS}/{ACTS}/log/"


def act_entry(number: int, sha256: str) -> str:
    """One entry, by its number and its content."""
    return f"{acts()}{number:012d}-{sha256}.json"


def seeds() -> str:
    """The prefix of the log of seeds that were handed out."""
    return f"{OPERATIONS}/{SEEDS}/"


def seeds_hour(hour: str) -> str:
    """The prefix of what was written to it in one hour (`2026-11-23-17`), so that the newest is found by a LIST."""
    return f"{seeds()}{hour}/"


def seeds_link(hour: str, writer: str, number: int, sha256: str) -> str:
    """One link of a writer's chain of it, by its number and its content."""
    return f"{seeds_hour(hour)}{writer}/{number:012d}-{sha256}.json"


def used() -> str:
    """The prefix of when each key was last used, about."""
    return f"{OPERATIONS}/{USED}/"


def last_use(key_id: str) -> str:
    return f"{used()}{key_id}.json"


def tally(project: str, thing: str, key: str | None = None) -> str:
    """How much of a project's rate limit for a thing was handed out of the newest minutes; or of one key's own."""
    name = f"{project}/{thing}" if key is None else f"{project}/{key}/{thing}"
    return f"{OPERATIONS}/{LIMITS}/{spread(name)}/{name}.json"


def spend_alert(month: str, alert: str, cents: int) -> str:
    """What became of telling that a month's spending has come to an alert's threshold."""
    return f"{OPERATIONS}/{ALERTS}/{month}/{alert}-{cents}.json"


def secret(name: str) -> str:
    """Where a secret of the deployment's own lies, that it drew once."""
    return f"{OPERATIONS}/{SECRETS}/{name}.json"


def redactions() -> str:
    """The prefix of the redaction keys of all projects."""
    return f"{OPERATIONS}/{REDACTION}/"


def redaction(project: str) -> str:
    """Where the key lies that a project's placeholders are hashed with."""
    return f"{redactions()}{project}.json"


def request(project: str, name: str) -> str:
    """What an idempotency key stood for: `name` is its hash. A sweep takes it once it is older than the term."""
    return f"{project}/{REQUESTS}/{name[:2]}/{name}.json"


def answers(project: str) -> str:
    """The prefix of what models answered in a project."""
    return f"{project}/{ANSWERS}/"


def answer(project: str, name: str) -> str:
    """What a model answered: `name` is the hash of all that decides the answer."""
    return f"{answers(project)}{name[:2]}/{name}.json"


def erasures(project: str) -> str:
    """The prefix of a project's erasure ledger: its head, each erasure, and which snapshots nobody may read again."""
    return f"{project}/{ERASURES}/"


def erasure_ledger(project: str) -> str:
    """The head of the ledger: it moves with each erasure, and names what holds for a time and not for a rollout."""
    return f"{erasures(project)}{spread('ledger')}/ledger.json"


def erasure(project: str, name: str) -> str:
    """One erasure: what it names, how far it is, and its receipt."""
    return f"{erasures(project)}{spread(name)}/{name}.json"


def erased_snapshot(project: str, snapshot: str, root: str) -> str:
    """Says that a root pack was erased: its bytes stay for the term, as other writers may build on them."""
    return f"{erasures(project)}{snapshot[:2]}/{snapshot}.{root}"


def spend(project: str, month: str) -> str:
    """What calls to models took in a project in one month (`2026-11`)."""
    return f"{project}/{SPEND}/{spread(month)}/{month}.json"
