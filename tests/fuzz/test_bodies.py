"""What comes in a request and is made to hurt: JSON that is deep, huge or ambiguous, bodies without an end, odd ids.

Each is refused with a kind, or taken as it stands; none is 500, and none takes more memory than its limit says.
"""

from __future__ import annotations

import gzip
import json
import tracemalloc
import urllib.parse

import hypothesis
import pytest
from hostile import asked, examples, world
from hypothesis import strategies as st

import made
from lookup_service import ACME
from runlore.commit import keys
from runlore.events import envelope, ids
from runlore.lookup.http import service
from runlore.store import port

ROUTES = ["events", "snapshots/merge", "erasures/plan", "archives/url", "memories/support/review/approve"]
DEEP = 200_000
BOMBS = {
    "lists": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "open": b"[" * DEEP,
    "in a field": b'{"reason":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a long number": b'{"size":' + b"9" * 100_000 + b"}",
    "no number": b'{"size":NaN,"sha256":Infinity}',
    "a large exponent": b'{"size":1e999999999}',
    "no text": b'{"reason":"\xff\xfe"}',
    "half a pair": b'{"reason":"\\ud800","run":"\\udfff","rollout":"\\ud800","sha256":"\\ud800"}',
    "many": b"[" + b"1," * 500_000 + b"1]",
    "gzip": gzip.compress(b"0" * 10_000_000),
    "a NUL": b'{"run":"\\u0000","reason":"\\u0000"}',
    "twice": b'{"run":"a","run":{"b":[]},"reason":"x"}',
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    async def fill(one):
        await one.events(made.data(1, rollout="conv-1"))

    with world(tmp_path_factory.mktemp("bodies"), fill) as found:
        yield found


def problem(answer, *statuses):
    assert answer.status in statuses, (answer.status, answer.body[:500])
    assert answer.json()["kind"] != "internal" and len(answer.body) < 20_000
    return answer.json()["kind"]


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("route", ROUTES)
def test_a_bomb_of_json_is_refused_with_a_kind(served, route, what):
    answer = served.ask("POST", f"{ACME}/{route}", headers={"Content-Encoding": "gzip"}, body=BOMBS[what])
    problem(answer, 400, 413)


def peak(work):
    """The most memory that was taken meanwhile, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_body_without_an_end_is_cut_off_at_its_limit_and_never_held(served):
    came = []

    def endless():
        while True:
            came.append(1)
            yield b" " * 65_536

    def send():
        answer = served.run(asked(served.one.app, "POST", f"{ACME}/erasures", pieces=endless()))
        assert problem(answer, 413) == "body_too_large"

    assert peak(send) < 3 * service.SMALL_JSON_BYTES_MAX
    assert len(came) <= service.SMALL_JSON_BYTES_MAX // 65_536 + 2


def test_a_length_that_is_told_is_refused_before_a_byte_is_read(served):
    for told in (str(service.JSON_BYTES_MAX + 1), "9" * 19, "9" * 5000):
        answer = served.ask("POST", f"{ACME}/events", headers={"content-length": told})
        assert problem(answer, 413) == "body_too_large"


def test_an_attribute_of_an_event_stands_for_no_other(served):
    """`ID` beside `id` would be `ce_ID` and `ce_id` on the bus, of which a reader takes the last."""
    event = made.event(7)
    for name in ("ID", "Type", "a b", "x\r\nid", "naïve", "", "a" * 100):
        answer = served.ask("POST", f"{ACME}/events", body=json.dumps({**event, name: "other"}).encode())
        assert problem(answer, 400) == "invalid_event", name
    taken = {**event, "traceparent": "00-1", "sequence": "7"}
    assert served.ask("POST", f"{ACME}/events", body=json.dumps(taken).encode()).status == 202


def test_the_attributes_of_an_event_are_bounded_as_its_data_is(served):
    for name in ("id", "source", "time", "other"):
        event = {**made.event(8), name: "x" * (envelope.ATTRIBUTES_BYTES_MAX + 1)}
        answer = served.ask("POST", f"{ACME}/events", body=json.dumps(event).encode())
        assert problem(answer, 413) == "event_too_large"


PARTS = [
    "../",
    "..\\",
    "%2e%2e%2f",
    "\r\nSet-Cookie: a=b",
    "\0",
    "\u202e",
    "аcme",
    "ａ",
    "/",
    "con",
    "rl-",
    " ",
]
hostile_ids = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.lists(
        st.sampled_from(PARTS),
        min_size=1,
        max_size=6,
    ).map("".join),
    st.sampled_from(["x" * 1024, "x" * 1025, "é" * 4096, "\u2028", "\ud800", "nul.txt", "a.", ".", ".."]),
)


@examples(40, 2000)
@hypothesis.given(hostile_ids)
def test_an_id_never_leaves_its_place(one_id):
    """Its alias is a file's name, always the same, and a key that holds it stays where it belongs."""
    alias = ids.alias(one_id)
    assert ids.is_file_safe(alias) or alias.startswith(ids.ALIAS_PREFIX)
    assert alias.isascii() and "/" not in alias and len(alias) <= 128 and alias == ids.alias(one_id)
    for key in (keys.rollout_head("acme", "support", alias), keys.snapshot_head("acme", alias, alias)):
        assert port.check_key(key) and key.startswith("acme/") and ".." not in key.split("/")


@examples(25, 1000)
@hypothesis.given(one_id=hostile_ids)
def test_an_id_in_a_path_a_query_or_a_body_is_taken_or_refused_and_breaks_no_header(served, one_id):
    quoted = urllib.parse.quote(one_id.encode("utf-8", "surrogatepass"), safe="")
    run = {**made.data(3), "session_id": one_id, "run_id": f"r-{one_id}"}
    for method, path, body in (
        ("GET", f"runs/{quoted}", None),
        ("GET", f"resolve?session_id={quoted}", None),
        ("GET", f"memories/support/seed?session_id=a&subject={quoted}&agent={quoted}", None),
        ("GET", f"memories/{quoted}/revisions", None),
        ("GET", f"memories/support/revisions/head/files/{quoted}", None),
        ("GET", f"snapshots/{quoted}/archive.tar?rollout={quoted}", None),
        ("GET", f"seeds/{quoted}", None),
        ("GET", f"erasures/{quoted}", None),
        ("POST", "events", run),
        ("POST", "erasures/plan", {"rollout": one_id}),
    ):
        raw = b"" if body is None else json.dumps(body).encode()
        answer = served.ask(method, f"{ACME}/{path}", body=raw)
        assert answer.status < 500, (path, answer.body[:300])
        assert answer.status < 400 or answer.json()["kind"]
        for name, value in answer.headers:
            assert not set(b"\r\n\0") & set(name + value), (name, value)
        if path.startswith("resolve") and answer.status == 200:
            assert answer.json()["alias"] == ids.alias(answer.json()["rollout"])
