"""`runlore topics`: what the bus needs of a Kafka cluster, printed or made from the map (`pipeline.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.bus import topics as bus_topics
    from runlore.settings import Settings

app = typer.Typer(help="Topics of a Kafka cluster: what the pipeline needs, and what there is.")

PartitionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--partitions",
        metavar="TOPIC=N",
        help="More partitions than the map says; may be given again. They can only grow.",
    ),
]
ReplicationOption = Annotated[
    int | None,
    typer.Option(
        "--replication",
        min=1,
        max=15,
        help="Replicas of each topic (default: 3, or as many as there are brokers).",
        show_default=False,
    ),
]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="topics")


@app.command()
def plan(
    partitions: PartitionsOption = None,
    replication: ReplicationOption = None,
    acls: Annotated[
        bool, typer.Option("--acls", help="Print the kafka-acls.sh commands of each role instead.")
    ] = False,
    principals: Annotated[
        str, typer.Option("--principals", help="With --acls: what stands before the role in a principal.")
    ] = "User:runlore-",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show the topics that the pipeline needs, and how the cluster's differ. Changes nothing.

    On the embedded log, which makes its topics itself, it shows what a cluster would need.

    Example: runlore topics plan --partitions runs=32
    """

    async def work(out: ui.Out) -> None:
        from runlore.bus import topics as bus_topics

        settings = ui.settings_of(home)
        if settings.bus != "kafka":
            topics = _wanted(settings, replication or bus_topics.REPLICATION, partitions)
            planned = [bus_topics.Planned(one, None) for one in topics]
            state = "unknown"
            out.note("RUNLORE_BUS is not kafka: there is no cluster to compare with")
        elif acls:
            topics = _wanted(settings, replication or bus_topics.REPLICATION, partitions)
            planned, state = [bus_topics.Planned(one, None) for one in topics], "unknown"
        else:
            async with bus_topics.connect(settings) as cluster:
                planned = await _plan(cluster, settings, replication, partitions)
            state = None
        _tell(out, settings, planned, state, principals=principals, acls=acls)

    ui.run(work, as_json=as_json)


@app.command()
def apply(
    partitions: PartitionsOption = None,
    replication: ReplicationOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make the topics that are missing, add partitions, raise limits. It never shrinks or deletes anything.

    Example: runlore topics apply --yes
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.bus import topics as bus_topics

        settings = ui.settings_of(home)
        if settings.bus != "kafka":
            raise errors.Refused(
                "RUNLORE_BUS is not kafka: the embedded log makes its topics itself",
                hint="set RUNLORE_BUS=kafka and RUNLORE_KAFKA_SERVERS",
            )
        async with bus_topics.connect(settings) as cluster:
            planned = await _plan(cluster, settings, replication, partitions)
            todo = [one for one in planned if one.to_apply]
            if todo:
                for one in todo:
                    out.note(_line(one))
                ui.confirm(out, f"Change {len(todo)} topics?", yes=yes, what="this changes topics")
                async with _audited(out, settings, [one.wanted.name for one in todo]):
                    await cluster.apply(planned)
                planned = await _plan(cluster, settings, replication, partitions)
        applied = [one.wanted.name for one in todo]
        out.answer({"applied": applied, "topics": [_row(one) for one in planned]})
        out.say(f"applied {len(applied)} topics" if applied else "nothing to apply: the topics are there")
        for one in planned:
            _tell_by_hand(out, one)

    ui.run(work, as_json=as_json)


@asynccontextmanager
async def _audited(out: ui.Out, settings: Settings, topics: list[str]) -> AsyncIterator[None]:
    """The entry of an `apply`; without one where there is no store yet: topics may well be what is made first."""
    from runlore import errors, wiring
    from runlore.upkeep import audit

    if settings.store == "directory" and not (settings.root / "home.json").exists():
        yield
        return
    store = wiring.store_of(settings)
    try:
        async with AsyncExitStack() as stack:
            entry = audit.acting(
                store, by=audit.who(settings), what="topics apply", arguments={"topics": topics}
            )
            try:
                await stack.enter_async_context(entry)
            except errors.RunloreError as exc:
                out.note(f"this is not in the audit log: {exc}")
            yield
    finally:
        await store.close()


def _wanted(settings: Settings, replication: int, partitions: list[str] | None) -> list[Any]:
    from runlore import errors, pipeline
    from runlore.bus import topics as bus_topics

    more: dict[str, int] = {}
    for one in partitions or []:
        name, _, count = one.partition("=")
        if not count.isdigit() or not 1 <= int(count) <= 10_000:
            raise errors.InvalidInput(f"{one!r} is not TOPIC=N", hint="like --partitions runs=32")
        more[name] = int(count)
    return bus_topics.wanted(
        pipeline.TOPICS, prefix=settings.kafka_topic_prefix, replication=replication, partitions=more
    )


async def _plan(
    cluster: bus_topics.Cluster, settings: Settings, replication: int | None, partitions: list[str] | None
) -> list[bus_topics.Planned]:
    from runlore.bus import topics as bus_topics

    replicas = replication or min(bus_topics.REPLICATION, await cluster.brokers())
    return await cluster.plan(_wanted(settings, replicas, partitions))


def _row(one: bus_topics.Planned, state: str | None = None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "topic": one.wanted.name,
        "state": state or one.state,
        "partitions": one.wanted.partitions,
        "replication": one.wanted.replication,
        "found": {"partitions": one.found.partitions, "replication": one.found.replication}
        if one.found
        else None,
        "settings": dict(one.wanted.settings),
        "differences": [asdict(change) for change in one.differences],
    }


def _line(one: bus_topics.Planned) -> str:
    if one.found is None:
        return (
            f"make {one.wanted.name}: {one.wanted.partitions} partitions, {one.wanted.replication} replicas"
        )
    changes = ", ".join(
        f"{change.what} {change.found} → {change.wanted}"
        for change in one.differences
        if change.remedy == "apply"
    )
    return f"change {one.wanted.name}: {changes}"


def _tell(
    out: ui.Out,
    settings: Settings,
    planned: list[bus_topics.Planned],
    state: str | None,
    *,
    principals: str,
    acls: bool,
) -> None:
    from runlore.bus import topics as bus_topics

    rules = bus_topics.rules(
        topic_prefix=settings.kafka_topic_prefix, group_prefix=settings.kafka_group_prefix
    )
    commands = [{"role": one.role, "command": one.command(f"{principals}{one.role}")} for one in rules]
    out.answer({"topics": [_row(one, state) for one in planned], "acls": commands})
    if acls:
        for one in commands:
            out.say(one["command"])
        return
    out.table(
        ("topic", "state", "partitions", "replicas"),
        [
            [
                one.wanted.name,
                state or one.state,
                one.found.partitions if one.found else one.wanted.partitions,
                one.found.replication if one.found else one.wanted.replication,
            ]
            for one in planned
        ],
    )
    for one in planned:
        for name, value in one.wanted.settings.items() if one.found is None else ():
            out.say(f"  {one.wanted.name}  {name}={value}")
        for change in one.differences:
            out.say(
                f"  {one.wanted.name}  {change.what}: {change.found}, wanted {change.wanted} ({change.remedy})"
            )
        _tell_by_hand(out, one)
    if any(one.to_apply for one in planned) and state is None:
        out.note("`runlore topics apply` makes and raises; what is by hand it leaves")
    out.note("`runlore topics plan --acls` prints what each role may do")


def _tell_by_hand(out: ui.Out, one: bus_topics.Planned) -> None:
    for change in one.differences:
        if change.how:
            out.note(f"by hand: {change.how}")
