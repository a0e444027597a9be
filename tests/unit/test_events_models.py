"""The data models: what a producer may send, what is refused, and that a refusal never shows a value."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.events import models

MINIMAL = {"project": "acme", "memory": "support", "run_id": "r1", "record": "{}"}


def test_the_least_that_a_producer_sends_is_enough():
    run = models.run_completed(MINIMAL)
    assert (run.attempt, run.layout.memories_dir, run.rollout) == (1, "memories", ("run", "run-r1"))


@pytest.mark.parametrize("name", ["project", "memory", "run_id"])
def test_a_required_field_that_is_missing_is_named(name):
    with pytest.raises(errors.InvalidEvent, match=name):
        models.run_completed({key: value for key, value in MINIMAL.items() if key != name})


@pytest.mark.parametrize(
    "change",
    [
        {"record": None},
        {"record_claim": {"sha256": "0" * 64, "size": 1}},
        {"record": None, "record_claim": {"sha256": "0" * 63, "size": 1}},
        {"record": None, "record_claim": {"sha256": "0" * 64, "size": -1}},
        {"attempt": 0},
        {"attempt": 1_000_000},
        {"agents": "Fixer"},
        {"run_id": ""},
        {"layout": {"memories_dir": "../x"}},
        {"layout": {"memories_dir": "/x"}},
        {"layout": {"sessions_dir": "a//b"}},
        {"layout": {"sessions_dir": "."}},
        {"layout": {"sessions_dir": ""}},
        {"layout": {"sessions_dir": 7}},
    ],
)
def test_a_field_of_another_shape_is_refused(change):
    with pytest.raises(errors.InvalidEvent):
        models.run_completed(MINIMAL | change)


@pytest.mark.parametrize(
    "change",
    [
        {"project": "../x"},
        {"memory": "A"},
        {"run_id": "a/../b"},
        {"subject": "a\nb"},
        {"session_id": "x" * 1025},
    ],
)
def test_an_id_that_is_not_one_is_refused(change):
    with pytest.raises(errors.InvalidId):
        models.run_completed(MINIMAL | change)


def test_a_refusal_names_the_field_and_never_shows_the_value():
    secret = "sk-live-0123456789"
    for change in ({"attempt": secret}, {"layout": {"memories_dir": f"../{secret}"}}, {"usage": secret}):
        with pytest.raises(errors.InvalidEvent) as found:
            models.run_completed(MINIMAL | change)
        assert secret not in str(found.value) and next(iter(change)) in str(found.value)


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_data_that_is_no_object_is_refused(data):
    with pytest.raises(errors.InvalidEvent):
        models.run_completed(data)


def test_a_record_given_as_an_object_becomes_the_sdk_line():
    record = {"updated_at": "unknown", "input": [{"content": "Café \u2028", "role": "user"}]}
    run = models.run_completed(MINIMAL | {"record": record})
    assert run.record == json.dumps(record, separators=(",", ":"))


@hypothesis.given(
    st.dictionaries(
        st.text(min_size=1).map(lambda name: f"x_{name}"),
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.text())
        | st.dictionaries(st.text(), st.integers()),
    )
)
def test_fields_that_nobody_here_knows_survive(unknown):
    data = MINIMAL | {"layout": {"memories_dir": "m", "sessions_dir": "s"} | unknown} | unknown
    assert models.run_completed(data).model_dump(exclude_unset=True) == data


def test_a_model_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        models.run_completed(MINIMAL).run_id = "r2"
