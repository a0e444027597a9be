"""A drafted mapping is one that loads, whatever the sample is; and reads the sample where its shape is clear."""

from __future__ import annotations

import tomllib

import hypothesis
import pytest
from hypothesis import strategies as st

import foreign
from runlore.sources.mapping import draft, event, explain

NAMES = st.sampled_from(["role", "from", "text", "content", "run id", "a.b", "x'y\"z"]) | st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["[{", "x'\"y"])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
conversations = st.lists(st.dictionaries(NAMES, scalars | st.just("bot"), min_size=1, max_size=4), max_size=5)
values = st.dictionaries(NAMES, conversations | anything, max_size=4) | anything


@hypothesis.given(values)
def test_any_sample_gives_a_mapping_that_loads(sample):
    text = draft.draft(sample, name="orders", topic="t", project="acme")
    table = tomllib.loads(text)
    if table["messages"]["at"] == "…":
        table["messages"]["at"] = "@"
    explain.explain(foreign.mapping(table), foreign.given(sample), event.no_objects)
    assert draft.draft(sample, name="orders", topic="t", project="acme") == text


@pytest.mark.parametrize("odd", ["\U0001f600", "\x7f", "\ud83d", "\u2028", "\x00", "\t\\"])
def test_words_of_odd_characters_are_said_in_toml(odd):
    messages = [{"from": odd, "text": "Hello"}, {"from": f"{odd}'\"", "text": "Yes?"}]
    table = tomllib.loads(
        draft.draft({"messages": messages, f"{odd} run id": 1}, name="orders", topic="t", project="acme")
    )
    roles = [odd, f"{odd}'\""] if odd.isprintable() else []
    assert list(table["messages"].get("roles", [])) == roles


def drafted(sample, **changes):
    table = tomllib.loads(draft.draft(sample, name="orders", topic="t", project="acme"))
    return {**table, **changes}


def test_the_order_desks_event_is_understood_but_for_what_only_a_person_knows():
    table = drafted(foreign.order())
    assert table["run"] == {"id": "event_id", "rollout": "chat.id", "time": "closed_at"}
    assert table["messages"]["roles"] == {"customer": "user", "desk": "call", "assistant": "assistant"}
    table["messages"]["call"] = foreign.ORDERS["messages"]["call"]
    table["end"]["states"] = foreign.ORDERS["end"]["states"]
    assert foreign.items(foreign.mapping(table), foreign.order()) == foreign.items(
        foreign.mapping(foreign.ORDERS), foreign.order()
    )


def test_a_span_needs_only_its_states_and_its_second_list_which_is_named():
    text = draft.draft(foreign.span(), name="spans", topic="t", project="acme")
    assert """# these look like messages too: 'attributes."gen_ai.output.messages"'""" in text
    found = foreign.mapping({**tomllib.loads(text), "end": {}})
    assert foreign.mapped(found, foreign.span()).event.data["conversation_id"] == "conv-5"


def test_names_are_understood_in_every_spelling():
    for event_of in (
        {"conversationId": "c"},
        {"conversation": {"id": "c"}},
        {"meta": {"conversation-id": "c"}},
    ):
        made = foreign.mapping(drafted({**event_of, "messages": [{"role": "user", "content": "x"}]}))
        found = foreign.mapped(made, {**event_of, "messages": [{"role": "user", "content": "x"}]})
        assert found.event.data["conversation_id"] == "c"
