"""Doctor past one machine: brokers, topics, clocks, signatures, prefixes, workers and lag, each in words.

It asks as the process would that it examines for: with the same settings and the same credentials. So run it in a
worker's own place to learn what that worker may do.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pydantic

from runlore import clock, errors, pipeline, wiring
from runlore.bus import port as bus_port
from runlore.commit import keys, sweep
from runlore.events import ids
from runlore.models import choices
from runlore.models import port as models_port
from runlore.settings import Settings
from runlore.store import port as store_port
from runlore.upkeep import doctor, pauses, workers

SKEW_MAX = sweep.CLOCK_SLACK
"""How far clocks may lie apart: what a sweep allows for."""
RETENTION_SHARE_MAX = 0.8
"""A message that waited for more of its topic's retention than this is about to be lost."""
READERS = (pipeline.RECORD, pipeline.SNAPSHOT)
STRANGERS_NAMED_MAX = 5
KEY_OF_PROBE = b"_doctor"


# --- a model ----------------------------------------------------------------------------------------------


class Word(pydantic.BaseModel):
    """The smallest answer that shows that a model keeps to a schema."""

    model_config = pydantic.ConfigDict(extra="forbid")

    word: str


async def of_model(settings: Settings) -> list[doctor.Check]:
    """Whether the models that are set answer in the shape that they are given; nothing where none is."""
    try:
        engine = wiring.engine_of(settings)
        chosen = choices.load(settings.models_file)
    except errors.RunloreError as exc:
        return [doctor.Check("model", False, f"{exc.kind}: {exc.message}", exc.hint or "")]
    if engine is None:
        return []
    try:
        asked = {(one.model, one.effort, one.tier): one for one in map(chosen.first, models_port.PHASES)}
        return [
            await doctor.tried(f"model {one.model}", lambda one=one: _word(engine, one))
            for one in asked.values()
        ]
    finally:
        await engine.close()


async def _word(engine: models_port.Engine, choice: choices.Choice) -> str:
    ask = models_port.Ask(
        model=choice.model,
        effort=choice.effort,
        tier=choice.tier,
        instructions="Answer with any one word.",
        input="Go.",
        answer=Word,
        output_tokens_max=2_000,
    )
    answer = await engine.ask(ask)
    cost = "its cost is not known" if answer.cost_usd is None else f"for ${answer.cost_usd:.6f}"
    return f"answers as it is asked to, {cost}"


# --- the store --------------------------------------------------------------------------------------------


async def of_store(store: store_port.ObjectStore, settings: Settings) -> list[doctor.Check]:
    """Clock, signatures and prefix of a store that works."""
    checks = [await doctor.tried("store's clock", lambda: _store_clock(store))]
    refuses = getattr(store, "refuses_old_signatures", None)
    if refuses is not None:
        checks.append(await doctor.tried("store's signatures", lambda: _signatures(refuses)))
    checks.append(await doctor.tried("store's prefix", lambda: _strangers(store, settings)))
    return checks


async def _store_clock(store: store_port.ObjectStore) -> doctor.Check:
    """The store dates what is written by its own clock."""
    key = keys.probe(clock.new_id())
    before = clock.now().timestamp()
    await store.put_if_absent(key, b"time")
    after = clock.now().timestamp()
    try:
        dated = [row.modified async for row in store.list(key) if row.key == key]
    finally:
        with contextlib.suppress(errors.RunloreError, OSError):
            await store.delete(key)
    if not dated:
        raise errors.Fatal("a LIST does not show what was just written", hint=doctor.UNFIT)
    return _skew("store's clock", dated[0], before, after)


def _skew(what: str, there: float, before: float, after: float) -> doctor.Check:
    """A time that was taken elsewhere between two of ours; whole seconds are all that some tell."""
    off = there - before if there < before else max(0.0, there - after)
    ok = abs(off) <= SKEW_MAX.total_seconds()
    if abs(off) < 1.5:
        return doctor.Check(what, True, "it agrees with this machine's")
    said = f"it is {abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} this machine's"
    return doctor.Check(
        what, ok, said, f"at most {SKEW_MAX.total_seconds():.0f} s are safe: set the clocks by NTP"
    )


async def _signatures(refuses: Any) -> doctor.Check:
    if await refuses():
        return doctor.Check("store's signatures", True, "a request that was signed 16 minutes ago is refused")
    return doctor.Check(
        "store's signatures",
        False,
        "the store takes a request that was signed 16 minutes ago: a paused writer could name what a sweep deleted",
        f"do not run `runlore sweep --apply` here; {doctor.UNFIT}",
    )


async def _strangers(store: store_port.ObjectStore, settings: Settings) -> doctor.Check:
    """Whether something lies in this place that no Runlore puts there: another deployment's prefix, mostly."""
    where = f"{settings.s3_bucket}/{settings.s3_prefix}" if settings.store == "s3" else "the store"
    strange = []
    for name in await store.children(""):
        if name.startswith("_"):
            strange += [name] if name not in keys.RESERVED else []
            continue
        kinds = set(await store.children(f"{name}/"))
        try:
            ids.check_name(name, "project")
            # An object beside the projects has nothing below it.
            strange += [f"{name}/{one}" for one in sorted(kinds - set(keys.KINDS))] or (
                [] if kinds else [name]
            )
        except errors.InvalidId:
            strange.append(name)
    if not strange:
        return doctor.Check("store's prefix", True, f"nothing lies in {where} that is not ours")
    more = f" and {len(strange) - STRANGERS_NAMED_MAX} more" if len(strange) > STRANGERS_NAMED_MAX else ""
    return doctor.Check(
        "store's prefix",
        False,
        f"{where} holds what is not ours: {', '.join(strange[:STRANGERS_NAMED_MAX])}{more}",
        "give each deployment a RUNLORE_S3_PREFIX of its own, of which none begins with another",
    )


# --- the bus ----------------------------------------------------------------------------------------------


async def of_bus(bus: bus_port.Bus, settings: Settings) -> list[doctor.Check]:
    """Brokers, topics, the brokers' clock, and how far each stage is behind."""
    checks: list[doctor.Check] = []
    if settings.bus == "kafka":
        checks += await _brokers(settings)
        if not any(one.ok for one in checks):
            return checks
        checks += await _topics(settings)
        if checks[-1].what == "topics" and not checks[-1].ok:
            return checks
        checks.append(await doctor.tried("broker's clock", lambda: _bus_clock(bus)))
    for stage in READERS:
        checks.append(await doctor.tried(stage.name, lambda stage=stage: _lag(bus, stage)))
    return checks


async def _brokers(settings: Settings) -> list[doctor.Check]:
    from runlore.bus import topics as bus_topics

    try:
        reached = await bus_topics.reach(settings)
    except errors.RunloreError as exc:
        return [doctor.Check("broker", False, exc.message, exc.hint or "")]
    return [
        doctor.Check(f"broker {one.server}", False, one.error.message, one.error.hint or "")
        if one.error
        else doctor.Check(f"broker {one.server}", True, "it answers and takes the login")
        for one in reached
    ]


async def _topics(settings: Settings) -> list[doctor.Check]:
    """Each topic against the map; the last check is `topics` where they can not be used at all."""
    from runlore.bus import topics as bus_topics

    try:
        async with bus_topics.connect(settings) as cluster:
            replicas = min(bus_topics.REPLICATION, await cluster.brokers())
            wanted = bus_topics.wanted(
                pipeline.TOPICS, prefix=settings.kafka_topic_prefix, replication=replicas
            )
            planned = await cluster.plan(wanted)
            others = await cluster.names()
    except errors.RunloreError as exc:
        return [doctor.Check("topics", False, exc.message, exc.hint or "")]
    checks = [_topic(one) for one in planned]
    checks += _other_prefixes(settings, others, [one.name for one in wanted])
    missing = [one.wanted.name for one in planned if one.found is None]
    if missing:
        said = f"{', '.join(missing)} not there, or not to be seen by this user"
        checks.append(doctor.Check("topics", False, said, "`runlore topics apply` makes them"))
    return checks


def _topic(one: Any) -> doctor.Check:
    what = f"topic {one.wanted.name}"
    if one.found is None:
        return doctor.Check(
            what, False, "it is not there, or this user may not see it", "`runlore topics apply`"
        )
    if not one.differences:
        said = f"{one.found.partitions} partitions, {one.found.replication} replicas, set as planned"
        if one.found.replication < 3:
            said += "; with fewer than 3 replicas a broken disk loses what was acknowledged"
        return doctor.Check(what, True, said)
    said = "; ".join(
        f"{change.what} is {change.found}, planned {change.wanted}" for change in one.differences
    )
    how = next((change.how for change in one.differences if change.how), "`runlore topics apply`")
    return doctor.Check(what, False, said, how)


def _other_prefixes(settings: Settings, names: Sequence[str], ours: Sequence[str]) -> list[doctor.Check]:
    """Topics of another deployment below our prefix: ACLs for ours would be for theirs too."""
    prefix = settings.kafka_topic_prefix
    ends = tuple(f"{end}{topic.name}" for topic in pipeline.TOPICS for end in (".", "-", "_"))
    others = [
        name
        for name in names
        if prefix and name.startswith(prefix) and name not in ours and name.endswith(ends)
    ]
    if not others:
        return []
    return [
        doctor.Check(
            "topics' prefix",
            False,
            f"{', '.join(sorted(others)[:STRANGERS_NAMED_MAX])} begin with {prefix!r} too: another deployment's",
            "give each a RUNLORE_KAFKA_TOPIC_PREFIX and GROUP_PREFIX of which none begins with another",
        )
    ]


async def _bus_clock(bus: bus_port.Bus) -> doctor.Check:
    """A doorbell that rings for nobody, dated by the broker (the topics ask for its time)."""
    topic = pipeline.CHANGED.name
    before = clock.now().timestamp()
    ((at, offset),) = await bus.produce([bus_port.Outgoing(topic, KEY_OF_PROBE, b"{}", [])])
    after = clock.now().timestamp()
    # Beyond the end of every other partition, so that only this one message is read.
    start = {partition: 2**62 for partition in await bus.committed(group="doctor", topic=topic)}
    async for message in bus.read(topic, start=start | {at.partition: offset}):
        return _skew("broker's clock", message.time, before, after)
    raise errors.BusUnavailable("what was just sent can not be read", hint="may this user read the topic?")


async def _lag(bus: bus_port.Bus, stage: pipeline.Stage) -> doctor.Check:
    """How far a stage is behind, and whether what waits is about to be lost to retention."""
    lag = sum((await bus.lag(group=str(stage.group), topic=stage.reads)).values())
    if not lag:
        return doctor.Check(stage.name, True, "nothing waits for it")
    oldest = await bus.oldest(group=str(stage.group), topic=stage.reads)
    age = dt.timedelta(seconds=max(0.0, clock.now().timestamp() - oldest)) if oldest else dt.timedelta()
    said = f"{lag:,} messages wait for it, the oldest for {dt.timedelta(seconds=int(age.total_seconds()))}"
    kept = dt.timedelta(hours=pipeline.topic(stage.reads).retention_hours)
    if age > kept * RETENTION_SHARE_MAX:
        hint = f"start workers now, or raise the topic's retention: it keeps messages for {kept}"
        return doctor.Check(stage.name, False, f"{said}: soon they are lost", hint)
    return doctor.Check(stage.name, True, said)


# --- the workers ------------------------------------------------------------------------------------------


async def of_workers(store: store_port.ObjectStore, settings: Settings) -> list[doctor.Check]:
    """What the workers say of themselves, their versions, and what is paused."""
    checks = []
    embedded = settings.bus == "sqlite" and settings.store == "directory"
    if not embedded:
        checks.append(await doctor.tried("workers", lambda: _workers(store)))
    with contextlib.suppress(errors.RunloreError, OSError):
        for one in (await pauses.read_all(store)).values():
            checks.append(doctor.Check("pause", True, str(one)))
    return checks


async def _workers(store: store_port.ObjectStore) -> doctor.Check:
    import runlore

    seen = await workers.read_all(store)
    alive = [one for one in seen if not one.is_silent]
    silent = [one for one in seen if one.is_silent]
    if not alive:
        return doctor.Check("workers", False, "none speaks", "start some: `runlore worker`")
    ill = {name: one for name, one in workers.together(seen).items() if one["state"] != "running"}
    versions = sorted({one.version for one in alive})
    if ill:
        said = "; ".join(
            f"{name} {one['state']} since {one['since']}: {one['cause']}" for name, one in ill.items()
        )
        return doctor.Check("workers", False, said, "`runlore status` shows all of it")
    if len(versions) > 1:
        said = f"different versions run: {', '.join(versions)}"
        return doctor.Check("workers", False, said, "finish the roll-out, or the roll-back")
    if silent:
        said = f"{silent[0].name} on {silent[0].host} is silent since {silent[0].at:%Y-%m-%d %H:%M}"
        return doctor.Check("workers", False, said, "did it die? Its status goes after a day")
    same = "" if versions == [runlore.__version__] else f" (this command: {runlore.__version__})"
    return doctor.Check("workers", True, f"{len(alive)} speak, version {versions[0]}{same}")
