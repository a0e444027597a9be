"""Objects that events point to: read within limits, unpacked within limits, and each failure told apart."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket

import pytest

import foreign
from runlore import errors
from runlore.sources.mapping import objects

TURNS = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]
TABLES = {
    "messages": {"object": "url", "at": "turns"},
    "objects": {"prefixes": ["s3://runlore/chats/"], "bytes_max": 2000},
}


def opened(endpoint, **changes):
    """A client of an S3 server, closed at the end."""
    given = {
        "endpoint": endpoint.endpoint,
        "region": "us-east-1",
        "access_key_id": endpoint.access_key_id,
        "secret_access_key": endpoint.secret_access_key,
        "timeout_seconds": 2.0,
    }
    return contextlib.closing(objects.client(**{**given, **changes}))


@pytest.fixture(params=["moto", "seaweedfs"])
def s3(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def put(s3):
    with opened(s3) as client:
        yield lambda key, body: client.put_object(Bucket=s3.bucket, Key=key, Body=body)


@pytest.fixture
def fetch(s3):
    with opened(s3) as client:
        yield objects.reader(client)


def test_messages_are_read_from_an_object_as_json_as_lines_and_packed(put, fetch):
    made = foreign.mapping(foreign.PLAIN, TABLES)
    lines = foreign.mapping(foreign.PLAIN, TABLES, {"messages": {"object": "url", "at": "@"}})
    whole = json.dumps({"turns": TURNS}).encode()
    put("chats/a.json", whole)
    put("chats/ä+=.json.gz", gzip.compress(whole, mtime=0))
    put("chats/a.jsonl", b"\n".join(json.dumps(one).encode() for one in TURNS))
    found = [
        foreign.items(made, {"url": "s3://runlore/chats/a.json"}, fetch=fetch),
        foreign.items(made, {"url": "s3://runlore/chats/ä+=.json.gz"}, fetch=fetch),
        foreign.items(lines, {"url": "s3://runlore/chats/a.jsonl"}, fetch=fetch),
    ]
    assert found == [[{"content": one["content"], "role": one["role"]} for one in TURNS]] * 3


@pytest.mark.parametrize(
    ("key", "body", "kind"),
    [
        ("none", None, "object_missing"),
        ("long", b"x" * 2001, "object_too_large"),
        ("bomb", gzip.compress(b"x" * 10_000_000, mtime=0), "object_too_large"),
        ("cut", gzip.compress(b"[]" * 50, mtime=0)[:-9], "undecodable"),
        ("wrong", b"\x1f\x8b nothing of the kind", "undecodable"),
        ("text", b"hello", "bad_json"),
        ("bytes", b"\xff\xfe", "bad_json"),
        ("other", b'{"messages": []}', "bad_messages"),
        ("lines", b'{"turns": []}\n{"turns": []}\n', "bad_messages"),
    ],
)
def test_an_object_that_can_not_be_read_is_a_dead_letter_with_its_reason(put, fetch, key, body, kind):
    made = foreign.mapping(
        foreign.PLAIN,
        TABLES,
        {"objects": {**TABLES["objects"], "bytes_max": 20_000 if key == "bomb" else 2000}},
    )
    if body is not None:
        put(f"chats/{key}", body)
    with pytest.raises(errors.Poison) as caught:
        made.map(foreign.given({"url": f"s3://runlore/chats/{key}"}), fetch)
    assert caught.value.kind == kind


def test_an_event_that_names_no_object_is_told(fetch):
    made = foreign.mapping(foreign.PLAIN, TABLES)
    with pytest.raises(errors.MissingField):
        made.map(foreign.given({}), fetch)


def test_a_bucket_or_a_key_that_is_refused_blocks_and_is_no_events_fault(s3):
    with opened(s3) as client, pytest.raises(errors.Blocked) as caught:
        objects.reader(client)("s3://no-such-bucket-here/a", 10)
    assert "s3:GetObject" in caught.value.hint


def test_wrong_credentials_block_and_are_not_repeated(seaweedfs):
    with (
        opened(seaweedfs, secret_access_key="not-the-secret") as client,
        pytest.raises(errors.Blocked) as caught,
    ):
        objects.reader(client)(f"s3://{seaweedfs.bucket}/chats/a", 10)
    assert "not-the-secret" not in str(caught.value)


def test_a_server_that_is_away_or_cuts_its_answer_is_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    made = objects.client(
        endpoint=closed, region="x", access_key_id="a", secret_access_key="b", timeout_seconds=0.2
    )
    with contextlib.closing(made) as client, pytest.raises(errors.SourceUnavailable):
        objects.reader(client)("s3://bucket/a", 10)


def test_no_client_is_made_before_something_is_asked_for():
    made = []

    def make():
        made.append(1)
        raise errors.Blocked("no boto3")

    fetch = objects.lazily(make)
    assert not made
    for _ in range(2):
        with pytest.raises(errors.Blocked):
            fetch("s3://b/a", 1)
    assert len(made) == 2
