"""Ids: the SDK's rollout order, and aliases that two originals never share, on any file system."""

from __future__ import annotations

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.events import ids

WINDOWS_RESERVED = ["con", "prn", "aux", "nul", "com0", "com9", "lpt1", "con.txt", "nul.tar.gz", "aux."]

# Ids near each other: same letters in other case, other separators, an alias given as an original.
near = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="aAbB.-_/:@ 9", max_size=12),
    st.sampled_from(["abc", "ABC", "Abc", "a b", "a-b", "a_b", "con", "CON", "con.txt", "k", "\u212a"]),
    st.builds(lambda text: ids.alias(text), st.text(max_size=20)),
)


@hypothesis.given(near, near)
def test_two_originals_never_share_an_alias_even_without_case(one, other):
    hypothesis.assume(one != other)
    assert ids.alias(one).casefold() != ids.alias(other).casefold()


@hypothesis.given(near)
def test_an_alias_is_file_safe_ascii_lower_case_and_bounded(original):
    alias = ids.alias(original)
    assert alias.isascii() and alias == alias.lower() and 1 <= len(alias) <= 128
    assert "/" not in alias and "\\" not in alias and not alias.startswith(".") and not alias.endswith(".")
    assert alias.split(".")[0] not in {"con", "prn", "aux", "nul"}
    assert unicodedata.normalize("NFD", alias) == alias
    assert ids.alias(original) == alias


@hypothesis.given(near)
def test_an_id_that_is_file_safe_stands_for_itself_and_any_other_bears_the_prefix(original):
    alias = ids.alias(original)
    assert (alias == original) == ids.is_file_safe(original)
    assert (alias == original) != alias.startswith(ids.ALIAS_PREFIX)


@pytest.mark.parametrize("name", [*WINDOWS_RESERVED, "CON", "Nul.log"])
def test_a_windows_device_name_is_aliased(name):
    assert ids.alias(name).startswith(ids.ALIAS_PREFIX)


def test_an_id_that_begins_like_an_alias_is_aliased_itself():
    alias = ids.alias("user:42")
    assert ids.alias(alias) != alias


def test_a_lone_surrogate_and_a_very_long_id_have_aliases():
    assert ids.alias("\ud800").startswith(ids.ALIAS_PREFIX)
    assert len(ids.alias("ab" * 5000)) <= 128


def test_a_subject_shows_nothing_of_its_original():
    assert "ana" not in ids.subject_alias("ana@example.com")
    assert ids.subject_alias("ana") != ids.alias("ana")


@pytest.mark.parametrize(
    ("given", "kind", "original"),
    [
        (("c", "s", "g"), "conversation", "c"),
        ((" c ", "s", "g"), "conversation", "c"),
        (("  ", "s", "g"), "session", "s"),
        ((None, "", "g"), "group", "g"),
        ((None, None, "\t"), "run", "run-r1"),
    ],
)
def test_a_rollout_is_the_first_id_that_is_not_blank(given, kind, original):
    conversation, session, group = given
    found = ids.resolve_rollout(conversation_id=conversation, session_id=session, group_id=group, run_id="r1")
    assert found == (kind, original)


def test_the_kinds_of_id_share_one_namespace():
    one = ids.resolve_rollout(conversation_id="abc", session_id=None, group_id=None, run_id="1")
    other = ids.resolve_rollout(conversation_id=None, session_id=None, group_id="abc", run_id="2")
    assert one.alias == other.alias == "abc"


@pytest.mark.parametrize("name", ["a", "0", "support", "team-a_b.c", "a" * 63])
def test_a_plain_name_is_accepted(name):
    assert ids.check_name(name, "project") == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "a/b", "a b", "a" * 64, "rl-a", "con", "nul.x", "a.", "ä", "a\n", "../a"]
)
def test_any_other_name_is_refused(name):
    with pytest.raises(errors.InvalidId):
        ids.check_name(name, "project")


@pytest.mark.parametrize(
    "value", ["", " ", "\u2003", "x" * 1025, "a\x00b", "a\nb", "a\x7f", "\ud800", "../x", "a/..", "..\\x"]
)
def test_an_id_that_is_blank_huge_or_climbs_is_refused(value):
    with pytest.raises(errors.InvalidId):
        ids.check_id(value, "run_id")


@pytest.mark.parametrize("value", ["user:42", "a/b", "..a", "a..b", "日本", "x" * 1024, "a b"])
def test_an_odd_id_is_accepted(value):
    assert ids.check_id(value, "run_id") == value
