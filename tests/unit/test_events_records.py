"""Records: the SDK's line, changed in nothing but what a change was asked for."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.events import records

LINE_BREAKS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"

texts = st.text(max_size=30) | st.text(alphabet='a"\\/\u2028é😀\ud800\n\t', max_size=12)
payloads = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=10,
    ),
    max_size=4,
)


@hypothesis.given(payloads)
def test_a_raw_line_in_ascii_is_the_line_that_python_would_have_written(payload):
    raw = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    hypothesis.assume("\x7f" not in raw)  # ASCII already, so it stays; Python alone would escape it.
    assert records.to_ascii(raw) == json.dumps(payload, separators=(",", ":"))


@hypothesis.given(payloads)
def test_an_ascii_line_stays_as_it_is(payload):
    line = json.dumps(payload)
    assert records.to_ascii(line) == line


def test_no_reader_that_splits_lines_breaks_an_ascii_record():
    raw = json.dumps({"input": [LINE_BREAKS]}, ensure_ascii=False)
    assert len(raw.splitlines()) > 1
    assert len(records.to_ascii(raw).splitlines()) == 1
    assert json.loads(records.to_ascii(raw)) == {"input": [LINE_BREAKS]}


@hypothesis.given(payloads, st.booleans(), st.sampled_from([None, 2]))
def test_strings_that_a_change_leaves_alone_keep_every_byte(payload, ascii_only, indent):
    line = json.dumps(payload, ensure_ascii=ascii_only, indent=indent)
    assert records.map_strings(line, lambda text: text) == line


def test_an_unusual_spelling_survives_a_change_elsewhere():
    line = r'{"a":"\u0041\/é", "b" : "secret", "c":1.0e3}'
    out = records.map_strings(line, lambda text: text.replace("secret", "[gone]"))
    assert out == r'{"a":"\u0041\/é", "b" : "[gone]", "c":1.0e3}'


@hypothesis.given(payloads)
def test_a_change_reaches_every_string_and_every_key(payload):
    def upper(text):
        return f"<{text}>"

    def walk(value):
        if isinstance(value, str):
            return upper(value)
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {upper(key): walk(item) for key, item in value.items()}
        return value

    line = json.dumps(payload, ensure_ascii=False)
    assert json.loads(records.map_strings(line, upper)) == walk(json.loads(line))


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_end_is_no_part_of_what_was_received(end):
    assert records.received_hash('{"a":1}' + end) == records.received_hash('{"a":1}')
    assert records.check('{"a":1}' + end) == {"a": 1}


def test_a_line_is_the_same_whether_its_producer_escapes_or_not():
    assert records.received_hash('{"a":"é😀"}') == records.received_hash(r'{"a":"\u00e9\ud83d\ude00"}')


@hypothesis.given(texts, texts)
def test_lines_that_differ_have_different_hashes(one, other):
    hypothesis.assume(records.to_ascii(one.rstrip("\r\n")) != records.to_ascii(other.rstrip("\r\n")))
    assert records.received_hash(one) != records.received_hash(other)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "1",
        '{"a":1}\n{"b":2}',
        '{"a":\r1}',
        '{"input":{}}',
        '{"generated_items":"x"}',
        '{"terminal_metadata":[]}',
        "[" * 100_000,
        '{"a":' + "[" * 500 + "]" * 500 + "}",
    ],
)
def test_a_line_that_is_no_record_is_refused(line):
    with pytest.raises(errors.InvalidRecord):
        records.check(line)
