"""Topics of a Kafka cluster: what the map wants, what there is, and the difference between the two.

Beside the path of a run: `runlore topics` and `runlore doctor` use it, no stage does. It only ever adds: a topic
that is missing, partitions, a higher limit. What could lose a message (less retention, fewer partitions, another
cleanup) or needs the cluster's own tools (replicas, ACLs) is said, with the command, and left to a person.

A topic is only asked for by listing all of them: asking for one by its name makes it, where the broker creates
topics by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors, pipeline
from runlore.bus import kafka, kafka_clients
from runlore.settings import Settings

REPLICATION = 3
"""Replicas of each topic, where the cluster has as many brokers."""
SETTLE_SECONDS_MAX = 15.0
"""How long a change may take until every broker shows it, in seconds."""
DYNAMIC_TOPIC_CONFIG = 1
"""The `config_source` of a setting that was made for this topic (KIP-226)."""
MISSING, DIFFERS, FINE = "missing", "differs", "fine"
APPLY, BY_HAND = "apply", "by hand"
AT_LEAST = ("retention.ms", "max.message.bytes", "min.insync.replicas")
"""Settings of which more is fine too: only these are raised, and none is ever lowered."""
REPLACED = ("message.timestamp.type",)
"""Settings that may be replaced: no message is lost by it."""


@dataclass(frozen=True)
class Wanted:
    """A topic as the map wants it, under its full name."""

    name: str
    partitions: int
    replication: int
    settings: Mapping[str, str]
    description: str = ""


@dataclass(frozen=True)
class Found:
    """A topic as the cluster has it: `own` are the settings that were made for it, `settings` all that hold."""

    partitions: int
    replication: int
    settings: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One thing that is not as wanted, and whether `apply` may change it."""

    what: str
    found: str
    wanted: str
    remedy: str
    how: str = ""
    """What a person runs, where the remedy is theirs."""


@dataclass(frozen=True)
class Planned:
    """One topic of the plan."""

    wanted: Wanted
    found: Found | None
    differences: tuple[Difference, ...] = ()

    @property
    def state(self) -> str:
        if self.found is None:
            return MISSING
        return DIFFERS if self.differences else FINE

    @property
    def to_apply(self) -> bool:
        """Whether `apply` would change anything."""
        return self.found is None or any(one.remedy == APPLY for one in self.differences)


def wanted(
    topics: Sequence[pipeline.Topic],
    *,
    prefix: str,
    replication: int,
    partitions: Mapping[str, int] | None = None,
) -> list[Wanted]:
    """The topics under their full names. `partitions`: more of them, by the name in the map. Pure.

    Raises `errors.InvalidInput` for a name that is not in the map.
    """
    more = dict(partitions or {})
    unknown = more.keys() - {topic.name for topic in topics}
    if unknown:
        raise errors.InvalidInput(
            f"there is no topic {sorted(unknown)[0]!r}",
            hint=f"topics: {', '.join(topic.name for topic in topics)}",
        )
    return [
        Wanted(
            prefix + topic.name,
            more.get(topic.name, topic.partitions),
            replication,
            {
                "cleanup.policy": topic.cleanup,
                "retention.ms": str(topic.retention_hours * 3_600_000),
                "max.message.bytes": str(topic.message_bytes_max),
                "message.timestamp.type": topic.timestamps,
                # With fewer replicas than three, waiting for two would stop the topic with one broker.
                "min.insync.replicas": str(topic.insync_min if replication >= REPLICATION else 1),
            },
            topic.description,
        )
        for topic in topics
    ]


def compare(topic: Wanted, found: Found | None) -> Planned:
    """What is not as wanted. Pure."""
    if found is None:
        return Planned(topic, None)
    differences = [_setting(topic, found, name) for name in topic.settings]
    if found.partitions < topic.partitions:
        differences.append(Difference("partitions", str(found.partitions), str(topic.partitions), APPLY))
    if found.replication < topic.replication:
        differences.append(
            Difference(
                "replicas",
                str(found.replication),
                str(topic.replication),
                BY_HAND,
                f"kafka-reassign-partitions.sh: give every partition of {topic.name} {topic.replication} replicas",
            )
        )
    return Planned(topic, found, tuple(one for one in differences if one is not None))


def _setting(topic: Wanted, found: Found, name: str) -> Difference | None:
    want, has = topic.settings[name], found.settings.get(name, "")
    if has == want:
        return None
    if name in AT_LEAST and _number(has) >= _number(want):
        return None
    if name == "min.insync.replicas" and found.replication <= int(want):
        # Waiting for as many replicas as there are stops the topic with any of them; for more, at once.
        return Difference(
            name, has or "unknown", want, BY_HAND, "more replicas first, then `runlore topics apply`"
        )
    if name in AT_LEAST or name in REPLACED:
        return Difference(name, has or "unknown", want, APPLY)
    how = f"kafka-configs.sh --alter --topic {topic.name} --add-config '{name}={want}'"
    return Difference(name, has or "unknown", want, BY_HAND, how)


def _number(text: str) -> float:
    """The value of a limit; -1 is none at all. What can not be read counts as nothing."""
    try:
        return float("inf") if int(text) == -1 else int(text)
    except ValueError:
        return float("-inf")


# --- who may do what --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What one role may do with one topic, group or the cluster."""

    role: str
    resource: str
    """`topic`, `group` or `cluster`."""
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False

    def command(self, principal: str) -> str:
        """The `kafka-acls.sh` that gives it to `principal`."""
        words = ["--add", "--allow-principal", principal]
        words += [word for one in self.operations for word in ("--operation", one)]
        words += ["--cluster"] if self.resource == "cluster" else [f"--{self.resource}", self.name]
        words += ["--resource-pattern-type", "prefixed"] if self.prefixed else []
        return 'kafka-acls.sh --bootstrap-server "$KAFKA" ' + shlex.join(words)


def rules(*, topic_prefix: str, group_prefix: str) -> list[Rule]:
    """The least that each role needs. Pure.

    An idempotent producer needs no more than Write on its topic since Kafka 2.8 (KIP-679).
    """
    read, write = ("Read", "Describe"), ("Write", "Describe")
    topic = {one.name: topic_prefix + one.name for one in pipeline.TOPICS}
    out = [Rule("producer", "topic", topic[name], write) for name in ("runs", "dead")]
    out += [Rule("source", "topic", topic[name], write) for name in ("runs", "dead")]
    out += [Rule("source", "group", f"{group_prefix}source-", read, prefixed=True)]
    out += [
        Rule("worker", "topic", topic["runs"], read),
        Rule("worker", "topic", topic["changed"], ("Read", "Write", "Describe")),
        Rule("worker", "topic", topic["dead"], write),
    ]
    groups = [one.group for one in pipeline.STAGES if one.group and one is not pipeline.INDEX]
    out += [Rule("worker", "group", group_prefix + group, read) for group in groups]
    for role in ("worker", "index"):
        # A group of its own for each replica, or they would share the doorbells out between them.
        out += [Rule(role, "group", f"{group_prefix}index", read, prefixed=True)]
    out += [Rule("index", "topic", topic["changed"], read)]
    everything = ("Create", "Alter", "AlterConfigs", "DescribeConfigs", "Describe", "Read", "Write")
    if topic_prefix:
        out += [Rule("operator", "topic", topic_prefix, everything, prefixed=True)]
    else:
        out += [Rule("operator", "topic", name, everything) for name in topic.values()]
    out += [Rule("operator", "group", group_prefix or "*", read, prefixed=bool(group_prefix))]
    out += [Rule("operator", "cluster", "", ("Describe",))]
    return out


# --- the cluster ------------------------------------------------------------------------------------------


class Cluster:
    """What there is on a cluster, and the few changes that are made to it."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin

    async def brokers(self) -> int:
        return len((await self._admin.describe_cluster())["brokers"])

    async def names(self) -> list[str]:
        """Every topic that this user may see."""
        return list(await self._admin.list_topics())

    async def look(self, names: Sequence[str]) -> dict[str, Found]:
        """Those of these topics that are there, or that this user may see. Raises `errors.Blocked`."""
        from aiokafka import admin as kafka_admin

        listed = {one["topic"]: one for one in await self._admin.describe_topics() if one["topic"] in names}
        if not listed:
            return {}
        resources = [
            kafka_admin.config_resource.ConfigResource(
                kafka_admin.config_resource.ConfigResourceType.TOPIC, one
            )
            for one in listed
        ]
        configs: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        for response in await self._admin.describe_configs(resources):
            for code, message, _, name, entries in response.resources:
                _check(code, message, f"tell the settings of topic {name}")
                configs[name] = _settings(entries)
        return {
            name: Found(
                len(one["partitions"]),
                min((len(part["replicas"]) for part in one["partitions"]), default=0),
                *configs.get(name, ({}, {})),
            )
            for name, one in listed.items()
        }

    async def plan(self, topics: Sequence[Wanted]) -> list[Planned]:
        """Each topic against what there is."""
        found = await self.look([one.name for one in topics])
        return [compare(one, found.get(one.name)) for one in topics]

    async def apply(self, planned: Sequence[Planned]) -> None:
        """Do what the plan may: make, grow, raise. Returns once the cluster shows it.

        Run twice, or by two at once, it ends in the same. Raises `errors.Blocked` where this user may not, and
        `errors.BusUnavailable` where the cluster does not come to show it.
        """
        await self._create([one.wanted for one in planned if one.found is None])
        for one in planned:
            what = {change.what for change in one.differences if change.remedy == APPLY}
            if one.found is None or not what:
                continue
            if "partitions" in what:
                await self._grow(one.wanted)
            if what - {"partitions"}:
                await self._alter(one.wanted, one.found, what - {"partitions"})
        await self._settled([one.wanted for one in planned])

    async def _create(self, topics: Sequence[Wanted]) -> None:
        from aiokafka import admin as kafka_admin

        if not topics:
            return
        made = [
            kafka_admin.NewTopic(one.name, one.partitions, one.replication, topic_configs=dict(one.settings))
            for one in topics
        ]
        response = await self._admin.create_topics(made)
        for name, code, *message in response.topic_errors:
            # 36: somebody else made it meanwhile; the plan after this shows how.
            if code != 36:
                _check(code, message[0] if message else None, f"make topic {name}")

    async def _grow(self, topic: Wanted) -> None:
        from aiokafka import admin as kafka_admin

        # Where somebody grew it further meanwhile the broker refuses, and the plan after this shows it.
        with contextlib.suppress(_invalid_partitions()):
            await self._admin.create_partitions({topic.name: kafka_admin.NewPartitions(topic.partitions)})

    async def _alter(self, topic: Wanted, found: Found, names: set[str]) -> None:
        """Change these settings. The request replaces all that were made for the topic, so those go along."""
        from aiokafka import admin as kafka_admin

        changed = {**found.own, **{name: topic.settings[name] for name in names}}
        resource = kafka_admin.config_resource.ConfigResource(
            kafka_admin.config_resource.ConfigResourceType.TOPIC, topic.name, changed
        )
        for response in await self._admin.alter_configs([resource]):
            for code, message, _, name in response.resources:
                _check(code, message, f"change the settings of topic {name}")

    async def _settled(self, topics: Sequence[Wanted]) -> None:
        """Wait until the cluster shows what was made: a broker's view may be a moment behind."""
        end = clock.monotonic() + SETTLE_SECONDS_MAX
        left: list[Planned] = []
        while clock.monotonic() < end:
            left = [one for one in await self.plan(topics) if one.to_apply]
            if not left:
                return
            await clock.sleep(0.2)
        raise errors.BusUnavailable(
            f"topic {left[0].wanted.name} does not show what was applied after {SETTLE_SECONDS_MAX:g} s",
            hint="run it again: what is there already is left as it is",
        )


def _settings(entries: Sequence[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """(all settings that hold, those made for the topic) of a DescribeConfigs response."""
    every = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    own = {
        entry[0]: entry[1] for entry in entries if entry[3] == DYNAMIC_TOPIC_CONFIG and entry[1] is not None
    }
    return every, own


def _invalid_partitions() -> type[Exception]:
    from aiokafka import errors as kafka_errors

    return kafka_errors.InvalidPartitionsError


def _check(code: int, message: str | None, what: str) -> None:
    """Raise the error that a response holds, in our words."""
    from aiokafka import errors as kafka_errors

    if code:
        raise _told(kafka_errors.for_code(code)(message or ""), what)


def _told(exc: Exception, what: str) -> errors.RunloreError:
    from aiokafka import errors as kafka_errors

    if isinstance(exc, kafka_errors.BrokerResponseError) and not isinstance(exc, kafka_clients.REFUSED):
        # The cluster's own policy, or more replicas than brokers: no waiting mends it.
        said = str(exc.args[0]) if exc.args and exc.args[0] else exc.description
        return errors.Refused(
            f"Kafka did not {what}: {said}", hint="`runlore topics plan` shows what is there"
        )
    return kafka_clients.fault(exc, what, "its brokers")


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Cluster]:
    """The cluster that the settings name. Raises `errors.BusUnavailable` or `errors.Blocked`, in words."""
    from aiokafka import admin as kafka_admin
    from aiokafka import errors as kafka_errors

    kafka_clients.hush()
    reached = await reach(settings)
    usable = [one.server for one in reached if one.error is None]
    if not usable:
        why = [one.error for one in reached if one.error is not None]
        blocked = [one for one in why if isinstance(one, errors.Blocked)]
        raise (blocked or why or [errors.Blocked("RUNLORE_KAFKA_SERVERS names no broker")])[0]
    admin = kafka_admin.AIOKafkaAdminClient(**kafka.client_options(settings) | {"bootstrap_servers": usable})
    try:
        try:
            await admin.start()
            yield Cluster(admin)
        except (kafka_errors.KafkaError, TimeoutError) as exc:
            raise kafka_clients.fault(exc, "tell or change its topics", settings.kafka_servers) from exc
    finally:
        await kafka_clients.stop_admin(admin)


@dataclass(frozen=True)
class Reached:
    """One server of the settings, and why it can not be used; None where it can."""

    server: str
    error: errors.RunloreError | None = None


async def reach(settings: Settings) -> list[Reached]:
    """Log in at each server of the settings, apart: aiokafka's own start does not say what failed."""
    options = kafka.client_options(settings)
    servers = options.pop("bootstrap_servers")
    options.pop("metadata_max_age_ms", None)  # Of a client, not of one connection.
    return list(await asyncio.gather(*(_reach_one(server, options) for server in servers)))


async def _reach_one(server: str, options: dict[str, Any]) -> Reached:
    from aiokafka import conn
    from aiokafka import errors as kafka_errors
    from aiokafka.protocol import metadata

    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        return Reached(
            server, errors.Blocked(f"{server!r} is not host:port", hint="mend RUNLORE_KAFKA_SERVERS")
        )
    try:
        made = await conn.create_conn(host.strip("[]"), int(port), **options)
        try:
            # A listener that wants a login accepts the connection, and ends it at the first request.
            await made.send(metadata.MetadataRequest([]))
        finally:
            made.close()
    except (kafka_errors.SaslAuthenticationFailed, kafka_errors.AuthenticationFailedError) as exc:
        return Reached(server, _login(server, str(exc.args[0]) if exc.args else "no reason given"))
    except (kafka_errors.UnsupportedSaslMechanismError, kafka_errors.IllegalSaslStateError):
        return Reached(server, _login(server, f"it does not take {options.get('sasl_mechanism')}"))
    except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
        told = errors.BusUnavailable(
            f"the broker {server} can not be used: {str(exc) or type(exc).__name__}",
            hint="is it up, is RUNLORE_KAFKA_SERVERS right, and is RUNLORE_KAFKA_SECURITY what it listens for?",
        )
        return Reached(server, told)
    return Reached(server)


def _login(server: str, why: str) -> errors.Blocked:
    return errors.Blocked(
        f"the broker {server} refuses the login: {why}",
        hint="check RUNLORE_KAFKA_USERNAME, RUNLORE_KAFKA_PASSWORD and RUNLORE_KAFKA_SASL_MECHANISM",
    )
