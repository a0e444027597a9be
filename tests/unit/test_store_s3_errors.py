"""What each answer of an S3 server means to a caller, for every method of the port.

Goal: the callers' three ways on (read again, send again, start from the head) never get mixed up. Method: the real
client against a server that answers with scripted bytes, because botocore's own parsing is half of the question.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runlore import errors
from runlore.commit import age
from runlore.settings import Settings
from runlore.store import s3, s3client, s3errors

ETAG = '"0123"'
OK = {"ETag": ETAG, "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}


class Scripted(ThreadingHTTPServer):
    """Answers every request with `answer(request)`: (status, headers, body), or None to end the connection."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = lambda request: (200, OK, b"")
        self.seen = []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self):
        with contextlib.suppress(ConnectionError):  # The client may go in the middle.
            super().handle()

    def _any(self):
        self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.arrived = dt.datetime.now(dt.UTC)
        self.server.seen.append(self)
        answer = self.server.answer(self)
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        always = {"Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**always, **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = Scripted()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


PLACE = s3client.Place(
    bucket="b",
    prefix="p/",
    region="us-east-1",
    access_key_id="id-in-no-message",
    secret_access_key="secret-in-no-message",
    timeout_seconds=2.0,
    connections_max=2,
)


@contextlib.asynccontextmanager
async def store_on(server, **changes):
    store = s3.S3Store(dataclasses.replace(PLACE, endpoint=server.endpoint, **changes))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(s3, "WAIT_SECONDS_MAX", 0.001)
    monkeypatch.setattr(s3, "READ_TRIES_MAX", 3)


async def _listed(store):
    return [row async for row in store.list("a/")]


READS = {
    "get": lambda store: store.get("a/k"),
    "get_many": lambda store: store.get_many(["a/k"]),
    "get_range": lambda store: store.get_range("a/k", 1, 2),
    "get_range of nothing": lambda store: store.get_range("a/k", 1, 0),
    "get_tail": lambda store: store.get_tail("a/k", 2),
    "list": _listed,
    "children": lambda store: store.children("a/"),
}
WRITES = {
    "put_if_absent": lambda store: store.put_if_absent("a/k", b"body"),
    "compare_and_set of nothing": lambda store: store.compare_and_set("a/k", b"body", None),
    "compare_and_set": lambda store: store.compare_and_set("a/k", b"body", "0123"),
    "compare_and_set, guarded": lambda store: store.compare_and_set("a/k", b"b", "0123", guard=lambda: None),
    "delete": lambda store: store.delete("a/k"),
    "delete_many": lambda store: store.delete_many(["a/k"]),
    "compare_and_delete": lambda store: store.compare_and_delete("a/k", "0123"),
}
PUT = {"put": lambda store: store.put("a/k", b"body")}
BUSY, LOST, NONE = errors.StoreUnavailable, errors.OutcomeUnknown, errors.WriteConflict


def xml(code, text="It went wrong."):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()


BARE = b"<html><body>Bad Gateway</body></html>"
ANSWERS = {
    # status and body → what a read raises, what a write raises
    "503 SlowDown": (503, xml("SlowDown"), BUSY, BUSY),
    "503 ServiceUnavailable": (503, xml("ServiceUnavailable"), BUSY, BUSY),
    "429": (429, xml("TooManyRequests"), BUSY, BUSY),
    "503 of a gateway": (503, BARE, BUSY, LOST),
    "502 of a gateway": (502, BARE, BUSY, LOST),
    "504 of a gateway": (504, b"", BUSY, LOST),
    "500": (500, xml("InternalError"), BUSY, LOST),
    "500, cut": (500, xml("InternalError")[:40], BUSY, LOST),
    "400 RequestTimeout": (400, xml("RequestTimeout"), BUSY, BUSY),
    "400 BadDigest": (400, xml("BadDigest"), BUSY, BUSY),
    "KMS throttled": (400, xml("KMS.ThrottlingException"), BUSY, BUSY),
    "409": (409, xml("ConditionalRequestConflict"), NONE, NONE),
    "409 aborted": (409, xml("OperationAborted"), NONE, NONE),
    "no answer": (None, b"", BUSY, LOST),
}
BLOCKING = {
    "403 AccessDenied": (403, xml("AccessDenied")),
    "403 bare": (403, b""),
    "401 bare": (401, b""),
    "403 InvalidAccessKeyId": (403, xml("InvalidAccessKeyId")),
    "403 SignatureDoesNotMatch": (403, xml("SignatureDoesNotMatch")),
    "400 ExpiredToken": (400, xml("ExpiredToken")),
    "400 InvalidToken": (400, xml("InvalidToken")),
    "403 RequestTimeTooSkewed": (403, xml("RequestTimeTooSkewed")),
    "404 NoSuchBucket": (404, xml("NoSuchBucket")),
    "400 KMS.DisabledException": (400, xml("KMS.DisabledException")),
    "403 InvalidObjectState": (403, xml("InvalidObjectState")),
    "501 NotImplemented": (501, xml("NotImplemented")),
    "400 of a code nobody knows": (400, xml("SomethingNew")),
    "301 PermanentRedirect": (301, xml("PermanentRedirect")),
}


def _answering(status, body):
    return lambda request: None if status is None else (status, {}, body)


HEADS = "get_range of nothing"
"""Asks with a HEAD, whose answer has no body to name a code."""


async def _failure(store, method):
    """What a method raised; a client takes a while to make, so that one store serves all of them."""
    try:
        result = await {**READS, **WRITES, **PUT}[method](store)
    except errors.RunloreError as exc:
        return exc
    pytest.fail(f"{method} returned {result!r}")


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_passing_fault_says_whether_the_write_may_have_landed(server, answer):
    status, body, of_read, of_write = ANSWERS[answer]
    server.answer = _answering(status, body)
    async with store_on(server) as store:
        for method in [*READS, *WRITES, *PUT]:
            if method == HEADS and status and status < 500:
                continue
            server.seen.clear()
            raised = await _failure(store, method)
            assert type(raised) is (of_read if method in READS else of_write), method
            # A read is tried again, and so is the one write whose second time changes nothing.
            assert len(server.seen) == (1 if method in WRITES else s3.READ_TRIES_MAX), method
            assert "b/p/a/" in str(raised) or method == "delete_many"


@pytest.mark.parametrize("answer", BLOCKING)
async def test_what_a_person_must_change_blocks_at_once_and_says_what_to_do(server, answer):
    status, body = BLOCKING[answer]
    server.answer = _answering(status, body)
    async with store_on(server) as store:
        for method in [*READS, *WRITES, *PUT]:
            if method == HEADS and status == 404:
                continue
            server.seen.clear()
            raised = await _failure(store, method)
            assert type(raised) is errors.Blocked and raised.hint, (method, raised)
            assert "in-no-message" not in f"{raised} {raised.hint} {raised.as_dict()}"
            changing = [one for one in server.seen if one.command in ("PUT", "POST", "DELETE")]
            assert len(changing) == (0 if method in READS else 1), f"{method} was sent again"


@pytest.mark.parametrize("method", ["put_if_absent", "compare_and_set", "compare_and_set of nothing"])
@pytest.mark.parametrize("status", [412, 404])
async def test_a_condition_that_does_not_hold_is_somebody_elses_write(server, method, status):
    server.answer = _answering(status, xml("PreconditionFailed" if status == 412 else "NoSuchKey"))
    async with store_on(server) as store:
        with pytest.raises(errors.PreconditionFailed):
            await WRITES[method](store)
    assert len(server.seen) == 1


@pytest.mark.parametrize("there", [True, False])
async def test_a_412_to_a_delete_is_looked_at_again_because_some_servers_say_it_for_nothing(server, there):
    def answer(request):
        if request.command == "HEAD":
            return (200, OK, b"") if there else (404, {}, b"")
        return 412, {}, xml("PreconditionFailed")

    server.answer = answer
    async with store_on(server) as store:
        with pytest.raises(errors.PreconditionFailed) if there else contextlib.nullcontext():
            await store.compare_and_delete("a/k", "0123")
    assert [one.command for one in server.seen] == ["DELETE", "HEAD"]


async def test_a_missing_object_is_no_error(server):
    server.answer = _answering(404, xml("NoSuchKey"))
    async with store_on(server) as store:
        assert [
            await READS[name](store) for name in ("get", "get_range", "get_range of nothing", "get_tail")
        ] == [None] * 4
        await store.delete("a/k")
        await store.compare_and_delete("a/k", "0123")


async def test_where_nobody_listens_nothing_landed():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    store = s3.S3Store(dataclasses.replace(PLACE, endpoint=endpoint))
    for method in [*READS, *WRITES, *PUT]:
        assert type(await _failure(store, method)) is errors.StoreUnavailable, method
    await store.close()


async def test_a_server_that_takes_a_request_and_never_answers_is_left_in_time(server):
    go_on = threading.Event()
    server.answer = lambda request: go_on.wait(60) and None
    began = time.monotonic()
    async with store_on(server, timeout_seconds=0.1) as store:
        for method in [*READS, *WRITES]:
            assert type(await _failure(store, method)) is (BUSY if method in READS else LOST), method
        go_on.set()
    assert time.monotonic() - began < 20


# --- bodies -----------------------------------------------------------------------------------------------


def _with_range(request, body):
    """A part of `body`, as a server that knows ranges would send it."""
    first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
    part = body[-int(last) :] if not first else body[int(first) : int(last) + 1]
    return 206, {**OK, "Content-Range": f"bytes {first}-{last}/{len(body)}"}, part


@pytest.mark.parametrize("cut", [0, 1, 500, 999])
@pytest.mark.parametrize("method", ["get", "get_range", "get_tail"])
async def test_a_body_that_is_cut_is_never_taken_for_the_whole(server, method, cut):
    body = bytes(range(250)) * 4
    calls = {
        "get": lambda store: store.get("a/k"),
        "get_range": lambda store: store.get_range("a/k", 0, 1000),
        "get_tail": lambda store: store.get_tail("a/k", 1000),
    }
    times = 0

    def answer(request):
        nonlocal times
        times += 1
        length = {"Content-Length": str(len(body))}
        status = 200 if method == "get" else 206
        return (status, {**OK, **length}, body[:cut] if times < 3 else body)

    server.answer = answer
    async with store_on(server) as store:
        found = await calls[method](store)
    assert (found.body if method == "get" else found) == body
    assert times == 3


@pytest.mark.parametrize("method", ["list", "children"])
async def test_a_list_that_is_cut_is_never_taken_for_the_whole(server, method):
    rows = "".join(
        f"<Contents><Key>p/a/{n}</Key><ETag>{ETAG}</ETag><Size>1</Size>"
        "<LastModified>2026-11-02T10:00:00Z</LastModified></Contents>"
        for n in range(9)
    )
    whole = (
        f"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
    )
    length = {"Content-Length": str(len(whole))}
    server.answer = lambda request: (200, length, whole.encode()[: len(whole) - 1 - 97 * len(server.seen)])
    async with store_on(server) as store:
        with pytest.raises(errors.StoreUnavailable):
            await READS[method](store)
        server.answer = lambda request: (200, {}, whole.encode())
        assert len(await READS[method](store)) == 9


async def test_a_body_that_is_not_what_its_checksum_says_is_read_again(server):
    sums = {"x-amz-checksum-crc32": s3client.checksum(b"right")}
    server.answer = lambda request: (200, {**OK, **sums}, b"wrong" if len(server.seen) < 2 else b"right")
    async with store_on(server) as store:
        assert (await store.get("a/k")).body == b"right"
        server.answer = lambda request: (200, {**OK, **sums}, b"wrong")
        with pytest.raises(errors.StoreUnavailable, match="checksum"):
            await store.get("a/k")
    assert server.seen[0].headers["x-amz-checksum-mode"] == "ENABLED"


async def test_an_answer_that_does_not_say_its_length_is_not_trusted(server):
    server.answer = lambda request: (200, {**OK, "Content-Length": None}, b"perhaps half of i")
    async with store_on(server) as store:
        with pytest.raises(errors.StoreUnavailable, match="how long"):
            await store.get("a/k")


async def test_a_server_without_ranges_still_gives_the_part_that_was_asked_for(server):
    server.answer = lambda request: (200, OK, b"0123456789")
    async with store_on(server) as store:
        assert await store.get_range("a/k", 2, 3) == b"234"
        assert await store.get_range("a/k", 20, 3) == b""
        assert await store.get_tail("a/k", 3) == b"789"
        assert await store.get_tail("a/k", 30) == b"0123456789"


async def test_a_range_asks_for_its_bytes_alone(server):
    server.answer = lambda request: _with_range(request, b"0123456789")
    async with store_on(server) as store:
        assert await store.get_range("a/k", 2, 3) == b"234"
        assert await store.get_tail("a/k", 3) == b"789"
    assert [one.headers["Range"] for one in server.seen] == ["bytes=2-4", "bytes=-3"]


# --- what is sent -----------------------------------------------------------------------------------------


async def test_a_write_carries_its_condition_its_checksum_and_its_encryption(server):
    async with store_on(server, encryption="kms", kms_key="arn:key") as store:
        await store.put_if_absent("a/k", b"body")
        await store.compare_and_set("a/k", b"body", "0123")
        await store.put("a/k", b"body")
    absent, moved, put = (one.headers for one in server.seen)
    assert (absent["If-None-Match"], absent["If-Match"]) == ("*", None)
    assert (moved["If-None-Match"], moved["If-Match"]) == (None, ETAG)
    assert (put["If-None-Match"], put["If-Match"]) == (None, None)
    for one in (absent, moved, put):
        assert one["x-amz-checksum-crc32"] == s3client.checksum(b"body")
        assert one["x-amz-server-side-encryption"] == "aws:kms"
        assert one["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:key"
        assert one["Transfer-Encoding"] is None and one["Content-Encoding"] is None
    assert [one.path for one in server.seen] == ["/b/p/a/k"] * 3


@pytest.mark.parametrize(("asked", "sent"), [("bucket", None), ("s3", "AES256")])
async def test_the_buckets_own_encryption_is_left_to_it(server, asked, sent):
    async with store_on(server, encryption=asked) as store:
        await store.put("a/k", b"")
    assert server.seen[0].headers["x-amz-server-side-encryption"] == sent


async def test_nothing_beside_the_prefix_is_told_of_and_no_name_that_is_no_key(server):
    names = ["p/a/good", "q/a/other", "p/a/", "p/a/Upper", "p/a/.hidden", "p/a/b/c"]
    rows = "".join(
        f"<Contents><Key>{name}</Key><ETag>{ETAG}</ETag><Size>1</Size>"
        "<LastModified>2026-11-02T10:00:00Z</LastModified></Contents>"
        for name in names
    )
    body = f"<?xml version='1.0'?><ListBucketResult>{rows}</ListBucketResult>".encode()
    server.answer = lambda request: (200, {}, body)
    async with store_on(server) as store:
        assert [(row.key, row.etag) for row in await _listed(store)] == [
            ("a/good", "0123"),
            ("a/b/c", "0123"),
        ]
    assert "prefix=p%2Fa%2F" in server.seen[0].path


async def test_a_key_that_a_batch_could_not_delete_is_told(server):
    body = (
        b"<?xml version='1.0'?><DeleteResult><Error><Key>p/a/2</Key><Code>AccessDenied</Code>"
        b"<Message>no</Message></Error></DeleteResult>"
    )
    server.answer = lambda request: (200, {}, body)
    async with store_on(server) as store:
        with pytest.raises(errors.Blocked, match="p/a/2"):
            await store.delete_many([f"a/{n}" for n in range(3)])
        server.answer = lambda request: (200, {}, body.replace(b"AccessDenied", b"InternalError"))
        with pytest.raises(errors.StoreUnavailable):
            await store.delete_many(["a/1", "a/2"])
        server.answer = lambda request: (200, {}, b"<?xml version='1.0'?><DeleteResult></DeleteResult>")
        server.seen.clear()
        await store.delete_many([f"a/{n}" for n in range(2001)])
        await store.delete_many([])
    assert [one.sent.count(b"<Key>") for one in server.seen] == [1000, 1000, 1]


async def test_every_request_is_told_with_its_bytes(server):
    told = []
    async with store_on(server) as store:
        store.on_request = lambda *told_of: told.append(told_of)
        await store.put("a/k", b"1234")
        server.answer = lambda request: (200, OK, b"123")
        await store.get("a/k")
        server.answer = lambda request: None
        with pytest.raises(errors.OutcomeUnknown):
            await store.put_if_absent("a/k", b"12")
        server.answer = _answering(412, xml("PreconditionFailed"))
        with pytest.raises(errors.PreconditionFailed):
            await store.put_if_absent("a/k", b"12")
    assert [one[:4] for one in told] == [
        ("PutObject", 200, 4, 0),
        ("GetObject", 200, 0, 3),
        ("PutObject", 0, 2, 0),
        ("PutObject", 412, 2, 0),
    ]
    assert all(one[4] > 0 for one in told)


# --- the guard --------------------------------------------------------------------------------------------


def _signed_at(request):
    stamp = request.headers["X-Amz-Date"]
    assert request.headers["Authorization"].split("Credential=")[1].split("/")[1] == stamp[:8]
    return dt.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)


@pytest.mark.parametrize("etag", [None, "0123"])
async def test_a_guarded_write_is_signed_then_checked_then_sent_and_never_signed_again(server, etag):
    signed, events = [], []

    def guard():
        events.append("guard")
        time.sleep(2.1)  # More than the second that a signature's time is given in.

    async with store_on(server) as store:
        await store.get("a/k")  # Makes the client.
        client = store._client._made
        client.meta.events.register("before-sign.s3.PutObject", lambda **_: signed.append(events[:]))
        server.seen.clear()
        await store.compare_and_set("a/k", b"body", etag, guard=guard)
    (request,) = server.seen
    assert signed == [[]] and events == ["guard"], "signed once, before the guard"
    assert request.arrived - _signed_at(request) >= dt.timedelta(seconds=2)


@pytest.mark.parametrize("answer", [None, (500, {}, xml("InternalError")), (503, {}, xml("SlowDown"))])
@pytest.mark.parametrize("etag", [None, "0123"])
async def test_a_guarded_write_that_fails_is_not_sent_again(server, etag, answer):
    guards = []
    server.answer = lambda request: answer
    async with store_on(server) as store:
        with pytest.raises(errors.Retryable):
            await store.compare_and_set("a/k", b"body", etag, guard=lambda: guards.append(1))
    assert len(server.seen) == len(guards) == 1


async def test_a_redirect_to_another_region_sends_no_guarded_write_a_second_time(server):
    server.answer = lambda request: (301, {"x-amz-bucket-region": "eu-west-1"}, xml("PermanentRedirect"))
    guards = []
    async with store_on(server) as store:
        with pytest.raises(errors.Blocked) as caught:
            await store.compare_and_set("a/k", b"body", "0123", guard=lambda: guards.append(1))
    assert "REGION" in caught.value.hint and len(guards) == 1
    assert [one.command for one in server.seen].count("PUT") == 1


@pytest.mark.parametrize("raised", [errors.CommitTooLate(), ValueError("any"), KeyboardInterrupt()])
async def test_what_a_guard_raises_is_raised_and_nothing_is_sent(server, raised):
    def guard():
        raise raised

    async with store_on(server) as store:
        with pytest.raises(type(raised)) as caught:
            await store.compare_and_set("a/k", b"body", None, guard=guard)
        assert caught.value is raised
        assert server.seen == []
        await store.compare_and_set("a/k", b"body", None)  # The thread remembers nothing of it.
    assert len(server.seen) == 1


async def test_an_old_signature_after_a_pause_is_tried_anew_and_a_wrong_clock_is_told(server):
    server.answer = _answering(403, xml("RequestTimeTooSkewed"))
    what = s3errors.translated
    async with store_on(server) as store:
        with pytest.raises(errors.Blocked, match="RequestTimeTooSkewed") as caught:
            await store.put_if_absent("a/k", b"")
    assert "clock" in caught.value.hint
    failed = caught.value.__cause__
    assert isinstance(what(failed, "PutObject", write=True, signed_seconds=1200), errors.StoreUnavailable)


def test_the_window_is_the_one_that_the_age_rule_counts_on():
    assert s3.SIGNATURE_WINDOW == age.WINDOW


# --- who asks ---------------------------------------------------------------------------------------------


async def test_without_credentials_it_blocks_and_says_which_setting(server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    async with store_on(server, access_key_id="", secret_access_key="") as store:
        for call in (*READS.values(), *WRITES.values(), *PUT.values()):
            with pytest.raises(errors.Blocked) as caught:
                await call(store)
            assert "RUNLORE_S3" in caught.value.hint
    assert server.seen == []


async def test_a_certificate_that_nobody_vouches_for_blocks(tmp_path):
    certificate = _self_signed(tmp_path)
    made = Scripted()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    made.handle_error = lambda *_: None  # It is told by the client that hangs up.
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    store = s3.S3Store(dataclasses.replace(PLACE, endpoint=made.endpoint.replace("http:", "https:")))
    try:
        for call in (READS["get"], WRITES["put_if_absent"]):
            with pytest.raises(errors.Blocked, match="certificate") as caught:
                await call(store)
            assert "AWS_CA_BUNDLE" in caught.value.hint
    finally:
        await store.close()
        made.shutdown()
        thread.join()
        made.server_close()


def _self_signed(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_settings_say_where_it_is_and_the_secret_is_shown_nowhere():
    settings = Settings(
        store="s3",
        s3_bucket="b",
        s3_prefix="x/y/",
        s3_access_key_id="id-in-no-message",
        s3_secret_access_key="secret-in-no-message",
        s3_encryption="kms",
        s3_kms_key="k",
        s3_connections_max=3,
    )
    store = s3.S3Store.of(settings)
    assert (store.place.bucket, store.place.prefix, store.place.kms_key) == ("b", "x/y/", "k")
    assert store.place.secret_access_key == "secret-in-no-message"
    assert "in-no-message" not in repr(store.place)
