"""Seed ids: what comes from outside is a seed or is refused in words, never a trace."""

from __future__ import annotations

import base64
import dataclasses
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.lookup import seeds

GOOD = seeds.Seed("acme", "support", 3, "0" * 64, "conv-1", None, "2999-01-01T00:00:00+00:00")
FIELDS = list(dataclasses.asdict(GOOD).values())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def named(value):
    raw = json.dumps(value).encode()
    return seeds.PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def refused(name):
    with pytest.raises((errors.InvalidInput, errors.SeedExpired)):
        seeds.parse(name)


def test_an_id_is_the_seed():
    for one in (GOOD, dataclasses.replace(GOOD, subject="rl-0", rollout="rl-x-0")):
        assert seeds.parse(one.id) == one


@hypothesis.given(st.integers(0, len(FIELDS) - 1), JSON)
@hypothesis.example(2, True)
@hypothesis.example(2, -1)
@hypothesis.example(6, "2999-01-01")
@hypothesis.example(6, "2999-01-01T00:00:00")
@hypothesis.example(4, "../x")
@hypothesis.example(0, "_dead")
def test_a_field_of_another_kind_is_refused(at, value):
    changed = [*FIELDS[:at], value, *FIELDS[at + 1 :]]
    try:
        found = seeds.parse(named(changed))
    except (errors.InvalidInput, errors.SeedExpired):
        return
    assert list(dataclasses.asdict(found).values()) == changed
    assert [type(one) for one in changed[:5]] == [
        str,
        str,
        int,
        str,
        str,
    ] and ".." not in found.rollout.split("/")


@hypothesis.given(JSON)
def test_any_other_json_is_refused(value):
    hypothesis.assume(value != FIELDS)
    refused(named(value))


@hypothesis.given(st.text(max_size=60))
def test_any_other_text_is_refused(text):
    refused(seeds.PREFIX + text)


@pytest.mark.parametrize("raw", [b"[" * 60_000, b"\xff" * 9, b"", b"[1" + b",1" * 9 + b"]"])
def test_bombs_and_bytes_are_refused(raw):
    refused(seeds.PREFIX + base64.urlsafe_b64encode(raw).decode())


def test_a_changed_character_never_names_another_memory_by_accident():
    for at in range(len(GOOD.id)):
        changed = f"{GOOD.id[:at]}A{GOOD.id[at + 1 :]}"
        try:
            found = seeds.parse(changed)
        except (errors.InvalidInput, errors.SeedExpired):
            continue
        assert found.id == changed or found == GOOD
