"""The envelope: CloudEvents in and out; whatever a stranger sends is an event or `Poison`, never a crash."""

from __future__ import annotations

import contextlib
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.events import envelope, models

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
attribute = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
names = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True).filter(
    lambda name: name not in {"id", "source", "type", "specversion", "time"}
)
events = st.builds(
    envelope.Event,
    id=attribute,
    source=attribute,
    type=attribute,
    data=json_values,
    time=st.just("") | attribute,
    extensions=st.dictionaries(names, attribute, max_size=3),
)


def headers(**changes):
    """A valid set of headers, with `changes` (None: left out)."""
    out = {"specversion": "1.0", "id": "e1", "source": "/test", "type": models.RUN_COMPLETED} | changes
    return [(f"ce_{name}", value.encode()) for name, value in out.items() if value is not None]


@hypothesis.given(events)
def test_an_event_survives_its_binary_form(event):
    assert envelope.parse(event.headers(), event.value()) == event


@hypothesis.given(events.filter(lambda event: "data" not in event.extensions))
def test_an_event_survives_its_structured_form(event):
    document = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    document |= event.extensions | {"data": event.data, "datacontenttype": "application/json"}
    if event.time:
        document["time"] = event.time
    hypothesis.assume("datacontenttype" not in event.extensions)
    content_type = [("Content-Type", b"application/cloudevents+json; charset=utf-8")]
    assert envelope.parse(content_type, json.dumps(document).encode()) == event


@hypothesis.given(events)
def test_a_value_is_ascii(event):
    assert event.value().isascii()


@hypothesis.given(
    st.lists(
        st.tuples(st.text(max_size=12) | st.sampled_from(["ce_id", "content-type"]), st.binary(max_size=20))
    ),
    st.none() | st.binary(max_size=200),
)
def test_random_bytes_are_an_event_or_poison(random_headers, value):
    with contextlib.suppress(errors.Poison):
        envelope.parse(random_headers, value)


@hypothesis.given(json_values)
def test_any_json_as_a_structured_event_is_an_event_or_poison(document):
    with contextlib.suppress(errors.Poison):
        envelope.from_structured(document)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_depth_bomb_is_bad_json(opening):
    with pytest.raises(errors.BadJson):
        envelope.parse(headers(), opening * 100_000)


@pytest.mark.parametrize("depth", [101, 300, 900])
def test_data_that_parses_but_is_too_deep_to_encode_again_is_bad_json(depth):
    value = b"[" * depth + b"]" * depth
    with pytest.raises(errors.BadJson, match="deep"):
        envelope.parse(headers(), value)


def test_data_of_the_greatest_depth_goes_through_every_model_and_back():
    nested = []
    for _ in range(95):
        nested = [nested]
    data = {"project": "p", "memory": "m", "run_id": "r", "record": {"input": nested}, "x": nested}
    event = envelope.parse(headers(), envelope.dump(data))
    run = models.run_completed(event.data)
    assert run.model_dump(exclude_unset=True)["x"] == nested


@pytest.mark.parametrize("value", [b"", b"\xff", b"{", b"\x00", b"1" * 5000, b'{"a":1}x'])
def test_bytes_that_are_not_json_are_bad_json(value):
    with pytest.raises(errors.BadJson):
        envelope.parse(headers(), value)


@pytest.mark.parametrize(
    "value",
    [
        *(b'{"usage":{"requests":%s}}' % one for one in (b"NaN", b"Infinity", b"-Infinity", b"1e999")),
        b'{"project":"acme","project":"other"}',
        b'{"a":[{"b":1,"b":1}]}',
    ],
)
def test_what_two_readers_could_read_differently_is_bad_json(value):
    with pytest.raises(errors.BadJson):
        envelope.parse(headers(), value)
    structured = b'{"specversion":"1.0","id":"e","source":"/s","type":"t","data":%s}' % value
    with pytest.raises(errors.BadJson):
        envelope.parse([("content-type", b"application/cloudevents+json")], structured)


def test_a_tombstone_is_no_event():
    with pytest.raises(errors.InvalidEvent):
        envelope.parse(headers(), None)


def test_an_event_over_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(errors.EventTooLarge):
        envelope.parse(headers(), b"[" * (envelope.EVENT_BYTES_MAX + 1))


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_required_attribute_that_is_missing_is_named(name, value):
    with pytest.raises(errors.InvalidEvent, match=name):
        envelope.parse(headers(**{name: value}), b"{}")


def test_another_version_of_cloudevents_is_refused():
    with pytest.raises(errors.UnknownVersion):
        envelope.parse(headers(specversion="0.3"), b"{}")


@pytest.mark.parametrize("document", [None, [], "x", {}, {"data": 1, "id": {"a": 1}}, {"data": 1, "x": [1]}])
def test_a_structured_document_of_another_shape_is_refused(document):
    with pytest.raises(errors.InvalidEvent):
        envelope.from_structured(document)


def test_half_a_surrogate_pair_in_an_attribute_is_refused_where_it_comes_in():
    document = {"specversion": "1.0", "id": "\ud800", "source": "/s", "type": "t", "data": 1}
    with pytest.raises(errors.InvalidEvent):
        envelope.from_structured(document)


def test_a_header_that_is_not_utf8_is_named_and_its_bytes_are_not_shown():
    with pytest.raises(errors.InvalidEvent, match="ce_id") as found:
        envelope.parse([("ce_id", b"\xff\xfe"), *headers()], b"{}")
    assert "xff" not in str(found.value)


def test_the_type_is_checked_before_its_version():
    run = envelope.parse(headers(), b"{}")
    envelope.check_type(run, models.RUN_COMPLETED)
    with pytest.raises(errors.UnknownType):
        envelope.check_type(run, models.CHANGED)
    newer = envelope.parse(headers(type="io.runlore.run.completed.v2"), b"{}")
    with pytest.raises(errors.UnknownVersion):
        envelope.check_type(newer, models.RUN_COMPLETED)


def test_a_run_sent_twice_is_one_event_and_any_change_of_it_another():
    data = {"project": "p", "memory": "m", "run_id": "r", "record": "{}"}
    same = envelope.of_run(dict(data), source="/a").id
    assert envelope.of_run(data, source="/b").id == same
    changes = [{"project": "q"}, {"memory": "n"}, {"run_id": "s"}, {"attempt": 2}, {"record": "{ }"}]
    others = {envelope.of_run(data | change, source="/a").id for change in changes}
    assert len(others | {same}) == len(changes) + 1
