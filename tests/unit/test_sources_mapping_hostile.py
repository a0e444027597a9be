"""Whatever an event holds: mapping it is a pure function that ends in an event, in nothing, or in a told error."""

from __future__ import annotations

import json
import time

import hypothesis
import pytest
from hypothesis import strategies as st

import foreign
from runlore import errors
from runlore.bus import port
from runlore.consumers import record as record_stage
from runlore.sources.mapping import event, explain, objects, turns

EVERYTHING = {
    "project": {"at": "tenant", "allowed": ["acme"]},
    "where": "type != 'skip'",
    "run": {
        "id": "id", "rollout": "chat.id", "run_id": "run || id", "attempt": "attempt", "subject": "subject",
        "agents": "agents", "parent_run_id": "parent", "resumed_from": "resumed", "seed": "seed", "time": "time",
    },
    "messages": {
        "at": ["turns", {"at": "text", "role": "assistant"}], "role": "role || type", "text": "content || text",
        "roles": {"bot": "assistant", "call": "call"}, "calls": "tool_calls || calls",
        "call": {"id": "id", "name": "name || function.name", "arguments": "arguments", "output": "output"},
    },
    "end": {"state": "state", "error": "error", "error_type": "kind", "final_output": "final"},
    "usage": {"input_tokens": "usage.input", "output_tokens": "usage.output"},
    "workspaces": [{"archive": "url", "agent": "agents[0]"}, {"snapshot": "snapshot", "base": "base"}],
    "objects": {"prefixes": ["s3://bucket/in/"]},
}  # fmt: skip
ROLES = {"call": "call"}
DEFAULTS = {"messages": {"at": "turns", "roles": ROLES}, "run": {"rollout": "chat.id"}}
OBJECT = {
    "messages": {"object": "url", "at": "turns"},
    "objects": {"prefixes": ["s3://bucket/in/"], "bytes_max": 999},
}
MADE = {
    "everything": foreign.mapping(foreign.PLAIN, EVERYTHING),
    "known shapes": foreign.mapping(
        foreign.PLAIN, {**EVERYTHING, "messages": {"at": "turns", "roles": ROLES}}
    ),
    "defaults": foreign.mapping(foreign.PLAIN, DEFAULTS),
    "an object": foreign.mapping(foreign.PLAIN, OBJECT),
}
NAMES = (
    "tenant", "type", "id", "chat", "run", "attempt", "subject", "agents", "parent", "resumed", "seed", "time", "turns",
    "text", "role", "content", "calls", "tool_calls", "function", "name", "arguments", "output", "state", "error",
    "kind", "final", "usage", "input", "url", "snapshot", "base", "parts", "data", "kwargs", "custom", "functionCall",
    "functionResponse", "tool_use_id", "is_error",
)  # fmt: skip
WORDS = (
    "acme", "skip", "user", "bot", "call", "assistant", "tool", "system", "function_call", "tool_use", "tool_result",
    "text", "completed", "failed", "s3://bucket/in/a", "s3://bucket/in/../b", "2026-03-02", "1772452800", "\x00",
    "\ud800", "..", "[]", '[{"role": "user", "content": "x"}]', "[" * 50,
)  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**301)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=10)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=40,
)
WHOLE = {
    "tenant": "acme", "type": "run", "id": "e-1", "chat": {"id": "c-1"}, "run": "r-1", "attempt": 2, "subject": "s",
    "agents": ["desk"], "parent": "p", "time": 1772452800, "text": "Done.", "state": "completed", "final": "Done.",
    "usage": {"input": 3, "output": "4"}, "url": "s3://bucket/in/a", "base": {"counter": 1},
    "turns": [
        {"role": "user", "content": "Find 1."},
        {"role": "assistant", "content": [{"type": "text", "text": "Let me."}], "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "found", "status": "error"},
        {"type": "function_call", "call_id": "c2", "name": "find", "arguments": "{}"},
        {"role": "user", "parts": [{"functionResponse": {"name": "find", "response": {"a": 1}}}]},
        {"type": "ai", "data": {"content": "Here.", "tool_calls": [{"name": "find", "args": {}}]}},
        {"role": "call", "name": "find", "arguments": {}, "output": 7},
    ],
}  # fmt: skip


def paths(value, path=()):
    """Every place in a value."""
    yield path
    for name, one in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(one, (*path, name))


def replaced(value, path, new):
    """The value with another at this place; as it is where a replacement before has taken the place away."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else None
    if copy is None or (path[0] not in copy if isinstance(copy, dict) else path[0] not in range(len(copy))):
        return value
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def damaged(draw):
    """A whole event, of which up to three parts are something else."""
    value = WHOLE
    for path in draw(st.lists(st.sampled_from(sorted(paths(WHOLE), key=str)), max_size=3)):
        value = replaced(value, path, draw(values))
    return value


events = damaged() | values


def fetch(url, bytes_max):
    """An object whose content is a function of its URL."""
    assert url.startswith("s3://bucket/in/") and ".." not in url
    return json.dumps({"turns": [{"role": "user", "content": url}]}).encode()


def outcome(made, raw, **where):
    """What mapping comes to, as something that can be compared."""
    try:
        found = made.map(foreign.given(raw, **where), fetch)
    except errors.Poison as exc:
        return exc.kind, exc.message
    if isinstance(found, event.Skipped):
        return found
    return found.event.headers(), found.event.value(), found.claims


@pytest.mark.parametrize("name", MADE)
def test_the_event_that_is_damaged_below_is_whole(name):
    assert len(outcome(MADE[name], json.dumps(WHOLE).encode())) == 3


@pytest.mark.parametrize("name", MADE)
@hypothesis.given(value=events)
def test_any_json_value_gives_an_event_nothing_or_a_told_error_and_the_same_one_again(name, value):
    made, raw = MADE[name], json.dumps(value).encode()
    first = outcome(made, raw)
    assert outcome(made, raw) == first
    told = explain.explain(made, foreign.given(raw), fetch)
    assert (told.reason is None) is (not isinstance(first[0] if isinstance(first, tuple) else "", str))
    explain.warnings(made, [told])
    if isinstance(first, tuple) and len(first) == 3:
        headers, body, _ = first
        message = port.Message("runs", 0, 0, b"k", body, headers, 0.0)
        incoming = record_stage.parse(message)
        record_stage.prepare(incoming, incoming.data.record)
        explain.shortened(told.mapped)
    # What was not thought of is counted too, and there should be none of it.
    assert first == event.Skipped("filtered") or first[0] != errors.Unmappable.kind


@hypothesis.given(raw=st.binary(max_size=60), key=st.none() | st.binary(max_size=4), time=st.floats())
def test_any_bytes_do_not_make_it_raise_anything_else(raw, key, time):
    made = foreign.mapping(foreign.PLAIN, {"run": {"rollout": {"key": True}}, "messages": "@"})
    outcome(made, raw, key=key, time=time, headers=[("h", raw)])


@hypothesis.given(value=events, offset=st.integers(0, 2**63 - 1), time=st.floats(0, 4e9))
def test_the_event_is_a_function_of_the_message_and_of_nothing_else(value, offset, time):
    raw = json.dumps(value).encode()
    assert outcome(MADE["defaults"], raw, offset=offset, time=time) == outcome(
        foreign.mapping(foreign.PLAIN, DEFAULTS), raw, offset=offset, time=time
    )


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "bad_json"),
        (b"\xff\xfe\x00", "bad_json"),
        ('{"a": 1}'.encode("utf-16"), "bad_json"),
        (b'{"turns": [' * 3000, "bad_json"),
        (b"[" * 101 + b"]" * 101, "bad_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_json"),
        (b'{"a": "\x01"}', "bad_json"),
        (b"{} {}", "bad_json"),
        (b"null", "missing_rollout"),
        (b"7", "missing_rollout"),
        (b'{"chat": {"id": ' + b"9" * 4000 + b'}, "turns": []}', "bad_messages"),
        (
            b'{"chat": {"id": ' + b"9" * 4000 + b'}, "turns": [{"role": "user", "content": 1e999}]}',
            "invalid_id",
        ),
    ],
)
def test_bad_bytes_are_dead_letters_with_their_reason(raw, kind):
    assert outcome(MADE["defaults"], raw)[0] == kind


def test_numbers_that_are_no_json_are_read_as_none():
    made = foreign.mapping(foreign.PLAIN, {**DEFAULTS, "end": {"final_output": "final"}})
    turn = b'{"role": "user", "content": "x"}'
    raw = b'{"chat": {"id": "c"}, "turns": [' + turn + b'], "final": {"a": NaN, "b": [1e999, -Infinity]}}'
    found = made.map(foreign.given(raw), event.no_objects)
    assert foreign.record(found)["final_output"] == {"a": None, "b": [None, None]}
    json.loads(found.event.value(), parse_constant=pytest.fail)


def test_a_conversation_of_many_wrong_messages_is_told_in_one_short_line():
    with pytest.raises(errors.BadMessages) as caught:
        turns.chat([{"role": f"r{number}"} for number in range(10_000)], "m", turns.Rules())
    assert len(caught.value.message) < 1000


def test_a_large_conversation_is_mapped_in_time_that_grows_with_it():
    def seconds(count):
        value = {"chat": {"id": "c"}, "turns": [{"role": "user", "content": "x" * 50}] * count}
        started = time.process_time()
        foreign.mapped(MADE["defaults"], value)
        return time.process_time() - started

    seconds(100)
    assert seconds(20_000) < 40 * max(seconds(2_000), 0.01)


# --- objects --------------------------------------------------------------------------------------------------

PREFIXES = ("s3://bucket/in/", "s3://other/deep/folder/")
GOOD = (
    "s3://bucket/in/a",
    "s3://bucket/in/a/b.json",
    "s3://bucket/in/ä ö".replace(" ", "_"),
    "s3://other/deep/folder/x=1",
)
BAD = (
    None, 7, "", "s3://bucket/in/", "s3://bucket/in", "s3://bucket/inner/a", "s3://bucket/other", "s3://bucket2/in/a",
    "s3://bucket.evil/in/a", "S3://bucket/in/a", "http://bucket/in/a", "https://bucket.s3.amazonaws.com/in/a",
    "file:///in/a", "s3://bucket/in/../b", "s3://bucket/in/a/../../b", "s3://bucket/in/./a", "s3://bucket/in//a",
    "s3://bucket/in/%2e%2e/b", "s3://bucket/in/a%2fb", "s3://bucket/in/a?versionId=1", "s3://bucket/in/a#b",
    "s3://bucket/in/a\\..\\b", "s3://bucket/in/a\x00", "s3://bucket/in/a\n", "s3://bucket/in/a b", "s3://u:p@bucket/in/a",
    " s3://bucket/in/a", "s3://bucket/in/a/", "s3:///in/a", "s3://bucket\\@bucket/in/a",
)  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_an_object_below_an_allowed_prefix_is_read(url):
    assert objects.check_url(url, PREFIXES, "url") == url


@pytest.mark.parametrize("url", BAD, ids=repr)
def test_any_other_url_is_refused_before_anything_is_asked_for(url):
    with pytest.raises(errors.ObjectRefused) as caught:
        objects.check_url(url, PREFIXES, "url")
    assert not url or str(url).strip() not in caught.value.message or url in str(PREFIXES)


@hypothesis.given(st.text(alphabet="abs3:/.%2eEfF\\?#\n bucketin", max_size=30))
def test_a_url_that_is_taken_names_a_key_below_its_prefix_however_it_is_read(tail):
    try:
        url = objects.check_url(f"s3://bucket/in/{tail}", PREFIXES, "url")
    except errors.ObjectRefused:
        return
    import posixpath
    from urllib.parse import unquote, urlsplit

    read = urlsplit(url)
    assert (read.scheme, read.netloc, read.query, read.fragment) == ("s3", "bucket", "", "")
    assert posixpath.normpath(unquote(read.path)) == read.path and read.path.startswith("/in/")


def test_no_prefix_allows_nothing():
    with pytest.raises(errors.ObjectRefused):
        objects.check_url("s3://bucket/in/a", (), "url")
