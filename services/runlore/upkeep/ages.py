"""Whether the store and the log are of the same time: what a stage committed is in the store.

It is not where the store was put back from an older copy, and not where a topic was made anew and grew beyond the
offsets that the group had committed in the one before: the stage began behind messages that it never saw. Either
way a replay brings up what is missing, as runs are recognised by what is recorded, never by offsets.
"""

from __future__ import annotations

import structlog

from runlore import errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures
from runlore.consumers import dead, record, summarize
from runlore.store import port as store_port
from runlore.upkeep import doctor

log = structlog.get_logger("runlore.ages")

LOOK = 3
"""Messages of each partition that are looked for in the store: right before the committed offset, and the very first,
where they are still there: a topic that was made anew may have been worked for a while from an old offset on."""
WHAT = "store and log"


async def missing(store: store_port.ObjectStore, bus: bus_port.Bus) -> tuple[int, int]:
    """(How many messages that were committed had no effect, of how many that were looked at)."""
    topic, group = pipeline.RECORD.reads, str(pipeline.RECORD.group)
    committed = await bus.committed(group=group, topic=topic)
    wanted = {
        at: {*range(min(LOOK, end)), *range(max(0, end - LOOK), end)} for at, end in committed.items() if end
    }
    found = await bus.reread(topic, wanted) if wanted else []
    suspicious = [message for message in found if not await _has_effect(store, message)]
    if not suspicious:
        return 0, len(found)
    buried = {one.id for one in await dead.read_all(bus)}
    names = [dead.letter_id(one.topic, one.partition, one.offset) for one in suspicious]
    return sum(name not in buried for name in names), len(found)


async def _has_effect(store: store_port.ObjectStore, message: bus_port.Message) -> bool:
    """Whether a run is in its rollout's head, or was erased. What can take no effect is a dead letter's to tell."""
    if record.is_blank(message):
        return True
    try:
        incoming = record.parse(message)
    except errors.Poison:
        return False
    head = await summarize.read(store, *incoming.line_of)
    if summarize.has(head.body.get("runs", {}).get(incoming.run), incoming.data.attempt):
        return True
    return incoming.is_erased(head, erasures.rows(await erasures.ledger(store, incoming.data.project)))


async def tell(store: store_port.ObjectStore, bus: bus_port.Bus) -> None:
    """Write it down where it is so, for whoever reads a worker's log; a fault on the way stops nobody."""
    try:
        found = await check(store, bus)
    except (errors.RunloreError, OSError) as exc:
        log.info("can not compare the store with the log", problem=str(exc))
        return
    if not found.ok:
        log.error("the store and the log are of two times", said=found.message, hint=found.hint)


async def check(store: store_port.ObjectStore, bus: bus_port.Bus) -> doctor.Check:
    """The same in words, with what to type."""
    lost, looked_at = await missing(store, bus)
    if not lost:
        return doctor.Check(WHAT, True, "what was committed is in the store")
    return doctor.Check(
        WHAT,
        False,
        f"of {looked_at} messages that were committed {lost} are not in the store: it, or the topic, was put back",
        "`runlore verify` says which; stop the workers, then `runlore replay --from beginning --reason …`, and the same"
        " with `--stage snapshot`: what is there already is recognised",
    )
