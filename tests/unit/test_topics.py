"""The plan of topics: it names every difference, and what it would apply can lose no message."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlore import errors, pipeline
from runlore.bus import topics

LIMITS = st.sampled_from(["-1", "0", "1", "2", "3", "3600000", "604800000", "999999999999", "", "none"])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "cleanup.policy": st.sampled_from(["delete", "compact", "compact,delete"]),
        "retention.ms": LIMITS,
        "max.message.bytes": LIMITS,
        "min.insync.replicas": LIMITS,
        "message.timestamp.type": st.sampled_from(["CreateTime", "LogAppendTime"]),
        "segment.bytes": LIMITS,
    },
)
FOUND = st.builds(topics.Found, st.integers(1, 40), st.integers(1, 5), SETTINGS, st.just({}))


def wanted(replication=3, **more):
    return topics.wanted(pipeline.TOPICS, prefix="p.", replication=replication, partitions=more)


def applied(planned):
    """The topic after the changes that the plan may make."""
    found = planned.found
    for change in planned.differences:
        if change.remedy == topics.APPLY and change.what == "partitions":
            found = dataclasses.replace(found, partitions=int(change.wanted))
        elif change.remedy == topics.APPLY:
            found = dataclasses.replace(found, settings={**found.settings, change.what: change.wanted})
    return found


@given(FOUND, st.sampled_from(range(3)), st.integers(1, 3), st.integers(1, 40))
def test_what_is_applied_loses_nothing_and_leaves_only_what_is_by_hand(found, which, replication, partitions):
    name = pipeline.TOPICS[which].name
    topic = wanted(replication, **{name: partitions})[which]
    planned = topics.compare(topic, found)
    after = applied(planned)
    assert after.partitions >= found.partitions and after.replication == found.replication
    for name in topics.AT_LEAST:
        before = topics._number(found.settings.get(name, ""))
        assert topics._number(after.settings.get(name, "")) >= before
    assert after.settings.get("cleanup.policy") == found.settings.get("cleanup.policy")
    again = topics.compare(topic, after)
    assert not again.to_apply
    assert {one.what for one in again.differences} == {
        one.what for one in planned.differences if one.remedy == topics.BY_HAND
    }
    # Every write waits for so many replicas: as many as there are, or more, would stop the topic.
    raised = {one.what for one in planned.differences if one.remedy == topics.APPLY}
    if "min.insync.replicas" in raised:
        assert int(after.settings["min.insync.replicas"]) < after.replication


@given(FOUND)
def test_only_a_topic_with_everything_wanted_is_called_fine(found):
    for topic in wanted():
        settings = {**found.settings, **topic.settings}
        full = topics.Found(found.partitions + topic.partitions, 3 + found.replication, settings)
        assert topics.compare(topic, full).state == topics.FINE
        for name in topic.settings:
            without = {key: value for key, value in settings.items() if key != name}
            planned = topics.compare(topic, dataclasses.replace(full, settings=without))
            assert [one.what for one in planned.differences] == [name]
    assert topics.compare(topic, None).state == topics.MISSING


def test_a_topic_that_is_not_in_the_map_is_refused_by_name():
    with pytest.raises(errors.InvalidInput, match="nonsense"):
        wanted(nonsense=3)


def test_a_message_of_the_largest_event_fits_its_topic_with_its_headers():
    from runlore.events import envelope

    for topic in wanted():
        assert int(topic.settings["max.message.bytes"]) > envelope.EVENT_BYTES_MAX + 512 * 1024


def test_each_role_may_do_what_its_stages_do_and_no_more():
    rules = topics.rules(topic_prefix="p.", group_prefix="g.")
    topic = {(one.role, one.name): set(one.operations) for one in rules if one.resource == "topic"}
    for stage in pipeline.STAGES:
        if stage.group and stage.name != "index":
            # The doorbell tells consolidate that there are marks; it reads the marks themselves from the store.
            source = stage.reads if stage.reads != "marks" else "changed"
            assert "Read" in topic["worker", f"p.{source}"]
        for emitted in stage.emits:
            assert "Write" in topic["worker", f"p.{emitted}"]
    groups = {(one.role, one.name) for one in rules if one.resource == "group"}
    assert {("worker", f"g.{one.group}") for one in pipeline.STAGES if one.group} <= groups
    for role, name in topic:
        if role in ("producer", "source", "worker", "index"):
            assert not {"Create", "Alter", "AlterConfigs", "Delete"} & topic[role, name]
    assert topic["producer", "p.runs"] == {"Write", "Describe"} and ("producer", "p.changed") not in topic
    assert ("index", "p.runs") not in topic and "Write" not in topic["index", "p.changed"]
    assert not [one for one in rules if "Delete" in one.operations or "All" in one.operations]


@given(st.sampled_from(["", "p.", "team-a."]), st.sampled_from(["", "g."]))
def test_an_acl_is_one_command_that_a_shell_takes_apart_as_it_is_meant(topic_prefix, group_prefix):
    for one in topics.rules(topic_prefix=topic_prefix, group_prefix=group_prefix):
        words = shlex.split(one.command("User:CN=x y,O=z"))
        assert words[words.index("--allow-principal") + 1] == "User:CN=x y,O=z"
        assert [words[at + 1] for at, word in enumerate(words) if word == "--operation"] == list(
            one.operations
        )
        if one.resource != "cluster":
            assert words[words.index(f"--{one.resource}") + 1] == one.name and one.name
        # Prefixed by nothing would be everything.
        assert one.name or not one.prefixed


def test_the_published_contract_names_the_same_settings():
    from runlore.events import schemas

    document = json.loads(json.dumps(schemas.asyncapi()))
    for topic in pipeline.TOPICS:
        binding = document["channels"][topic.name]["bindings"]["kafka"]["topicConfiguration"]
        assert binding["cleanup.policy"] == [topic.cleanup]
        assert binding["max.message.bytes"] == topic.message_bytes_max
