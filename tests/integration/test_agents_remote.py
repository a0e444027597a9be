"""`Runlore` while the lookup service fails: the run succeeds, waits no longer than its deadline, nothing is lost."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from faulty_service import Server, tar_of
from runlore import errors
from runlore.agents import Runlore, port, remote
from sandboxed import config, done, plain, scripted, seen, shell, until, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def told():
    return []


@pytest.fixture
def lore_at(tmp_path, told):
    def made(url, deadline_seconds=0.4, **more):
        more.setdefault("key", "rl_secret")
        return Runlore(
            "acme",
            memory="support",
            url=url,
            home=tmp_path / "home",
            deadline_seconds=deadline_seconds,
            on_error=told.append,
            **more,
        )

    return made


def waiting(tmp_path):
    folder = tmp_path / "home" / "agents" / "acme.support" / "waiting"
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


FAULTS = {
    "hangs": {"GET ": "hang", "POST ": "hang"},
    "500": {"GET ": (500, {}), "POST ": (500, {"kind": "internal", "detail": "boom"})},
    "breaks_off": {"GET ": "break", "POST ": "break"},
    "nonsense": {"GET ": (200, b"<html>"), "POST ": (503, b"\xff\xfe")},
    "unauthorized": {"GET ": (401, {"kind": "unauthorized"}), "POST ": (401, {"kind": "unauthorized"})},
    "other_json": {"GET ": (200, []), "POST ": (502, [])},
    "trickles": {"GET ": "trickle", "POST ": "trickle"},
    "endless": {"GET ": "endless", "POST ": "endless"},
    # What stands before a service and answers for it.
    "proxy_page": {"GET ": (200, b"<html>"), "POST ": (200, b"<html>Log in, please.")},
    "proxy_json": {"GET ": (200, {}), "POST ": (200, {"ok": True})},
    "proxy_400": {"GET ": (400, b"<html>"), "POST ": (400, b"<html>")},
    "proxy_404": {"GET ": (404, b"<html>"), "POST ": (404, b"default backend")},
    "proxy_405": {"GET ": (405, b""), "POST ": (405, b"")},
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_neither_the_key_nor_the_run_away(tmp_path, lore_at, told, status):
    async with Server().run() as server, Server().run() as elsewhere:
        elsewhere.works()
        away = (status, b"", f"location: {elsewhere.url}/v1/projects/acme/events")
        server.answers = {"GET ": away, "POST ": away}
        lore = lore_at(server.url, deadline_seconds=20)
        result = await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
        assert result.final_output == "done"
        await lore.aclose()
        assert elsewhere.requests == [] and len(waiting(tmp_path)) == 1
        assert any(str(status) in str(one) for one in told)


async def speaks_no_tls(reader, writer):
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("host", ["https://127.0.0.1", "http://nowhere.invalid"])
async def test_a_broken_tls_or_name_stops_no_run_and_loses_none(tmp_path, lore_at, told, monkeypatch, host):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    server = await asyncio.start_server(speaks_no_tls, "127.0.0.1", 0)
    port_number = server.sockets[0].getsockname()[1]
    if "invalid" in host:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    lore = lore_at(f"{host}:{port_number}", deadline_seconds=20)
    result = await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
    assert result.final_output == "done" and len(waiting(tmp_path)) == 1
    assert any(isinstance(one, errors.ServiceUnavailable) for one in told)
    await lore.aclose()
    server.close()
    await server.wait_closed()


async def test_an_answer_without_end_is_cut_off_and_held_in_bounds(lore_at, monkeypatch):
    monkeypatch.setattr(remote, "ANSWER_BYTES_MAX", 2**20)
    monkeypatch.setattr(remote, "MEMORY_BYTES_MAX", 2**20)
    monkeypatch.setattr(remote, "ARCHIVE_BYTES_MAX", 2**20)
    async with Server().run() as server:
        server.answers = {"GET ": "endless"}
        backend = lore_at(server.url).link.backend
        with pytest.raises(errors.ServiceUnavailable):
            await backend.seed(port.Ask(run_id="r"), None)
        with pytest.raises(errors.BadArchive):
            await backend.fetch(port.Workspace(snapshot=SNAPSHOT), Path(os.devnull))
        server.answers = {"GET /seed?": (200, {**SEED, "revision": 1}), "GET /memory.tar": "endless"}
        with pytest.raises(errors.BadArchive):
            await backend.seed(port.Ask(run_id="r"), None)


async def test_an_answer_that_trickles_for_one_run_holds_up_no_other(tmp_path, lore_at, monkeypatch):
    from agents import Agent

    monkeypatch.setattr(remote, "ANSWER_SECONDS_MAX", 0.2)
    async with Server().run() as server:
        server.works()
        server.answers["POST /archives"] = "trickle"
        lore = lore_at(server.url, deadline_seconds=20)
        await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
        await lore.run(Agent(name="p", model=scripted(done())), "go", run_config=plain())
        await until(lambda: server.posted("/events"))
        assert json.loads(server.posted("/events")[0])["agents"] == ["p"]
        await lore.aclose()
        assert len(waiting(tmp_path)) == 1


async def test_a_key_is_taken_with_the_end_of_its_line_and_never_told(lore_at, told):
    async with Server().run() as server:
        server.works()
        lore = lore_at(server.url, deadline_seconds=20, key="rl_secret\n")
        await lore.run(worker(done()), "go", run_config=config())
        await lore.aclose()
        assert {headers["authorization"] for _, headers in server.requests} == {"Bearer rl_secret"}
        assert told == []
    for key in ("rl_sec\nret", "rl_sécret", "rl_\x00"):
        with pytest.raises(errors.InvalidInput) as caught:
            lore_at(server.url, key=key)
        assert "rl_" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_run_succeeds_while_the_service_fails_and_is_delivered_later(tmp_path, lore_at, told, fault):
    async with Server().run() as server:
        server.answers = FAULTS[fault]
        lore = lore_at(server.url)
        agent = worker(shell("echo kept > a"), done())
        result = await lore.run(agent, "go", conversation_id="c", run_config=config())
        assert result.final_output == "done" and told
        (entry,) = waiting(tmp_path)
        assert (entry / "0.tar").exists()
        assert "rl_secret" not in "".join(str(one) for one in told)
        await lore.aclose()
        server.works()
        later = lore_at(server.url, deadline_seconds=20)
        await later.aclose()
        assert waiting(tmp_path) == []
        (event,) = [json.loads(body) for body in server.posted("/events")[-1:]]
        assert event["workspaces"] == [{"archive": {"sha256": "0" * 64, "size": 1}}]
        with tarfile.open(fileobj=io.BytesIO(server.posted("/archives")[-1])) as archive:
            assert archive.extractfile("./a").read() == b"kept\n"


async def test_a_service_that_refuses_connections_stops_no_run(tmp_path, lore_at, told):
    lore = lore_at("http://127.0.0.1:1", deadline_seconds=20)
    stream = lore.run_streamed(worker(shell("echo 1"), done()), "go", run_config=config())
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == "done"
    await until(lambda: waiting(tmp_path))
    assert any(isinstance(one, errors.ServiceUnavailable) for one in told)
    await lore.aclose()


SNAPSHOT = "a" * 64
BASE = {"counter": 3, "snapshot": SNAPSHOT}
SEED = {"seed": "s1.x", "revision": 0, "snapshot": SNAPSHOT, "base": BASE}


async def test_a_workspace_comes_with_the_seed_and_goes_back_with_its_base(tmp_path, lore_at):
    async with Server().run() as server:
        server.answers["GET /archive.tar"] = (200, tar_of({"./b.txt": b"from the service\n"}))
        server.works(**SEED)
        lore = lore_at(server.url, deadline_seconds=20)
        agent = worker(shell("cat b.txt"), done())
        result = await lore.run(agent, "go", conversation_id="c", run_config=config())
        assert "from the service" in seen(result)
        await lore.aclose()
        (event,) = map(json.loads, server.posted("/events"))
        assert event["workspaces"][0]["base"] == BASE and event["seed"] == "s1.x"
        assert all(headers["authorization"] == "Bearer rl_secret" for _, headers in server.requests)


BAD_TARS = {
    "no_tar": b"this is no tar" * 100,
    "cut": tar_of({"a": b"x" * 5000})[:2000],
    "empty": b"",
    "climbs": tar_of({"../../escaped": b"x"}),
}


@pytest.mark.parametrize("tar", BAD_TARS)
async def test_a_bad_archive_stops_no_run_and_is_no_base_that_was_seen(tmp_path, lore_at, told, tar):
    async with Server().run() as server:
        server.answers["GET /archive.tar"] = (200, BAD_TARS[tar])
        server.works(**SEED)
        lore = lore_at(server.url, deadline_seconds=20)
        agent = worker(shell("echo new > n; ls"), done())
        result = await lore.run(agent, "go", conversation_id="c", run_config=config())
        assert result.final_output == "done" and told
        await lore.aclose()
        (event,) = map(json.loads, server.posted("/events"))
        assert "base" not in event["workspaces"][0]
    assert not list(tmp_path.rglob("escaped"))


async def test_an_archive_that_hangs_is_no_base_that_was_seen(lore_at, told):
    async with Server().run() as server:
        server.answers["GET /archive.tar"] = "hang"
        server.works(**SEED)
        lore = lore_at(server.url, deadline_seconds=1.0)
        await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
        await until(lambda: server.posted("/events"))
        assert "base" not in json.loads(server.posted("/events")[0])["workspaces"][0]
        await lore.aclose()


async def test_what_the_service_will_never_take_is_set_aside_and_told(tmp_path, lore_at, told):
    async with Server().run() as server:
        server.works()
        server.answers["POST /events"] = (400, {"kind": "invalid_event", "detail": "no"})
        lore = lore_at(server.url, deadline_seconds=20)
        await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
        await lore.aclose()
        assert waiting(tmp_path) == [] and any("400 (invalid_event)" in str(one) for one in told)
        (kept,) = (tmp_path / "home" / "agents" / "acme.support" / "refused").iterdir()
        assert "invalid_event" in (kept / "why.txt").read_text()


async def test_a_refused_archive_costs_the_workspace_and_not_the_run(tmp_path, lore_at, told):
    async with Server().run() as server:
        server.works()
        server.answers["POST /archives"] = (413, {"kind": "too_large", "detail": "no"})
        lore = lore_at(server.url, deadline_seconds=20)
        await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
        await lore.aclose()
        (event,) = map(json.loads, server.posted("/events"))
        assert event["workspaces"] == [] and told
        (kept,) = (tmp_path / "home" / "agents" / "acme.support" / "refused").iterdir()
        assert (kept / "0.tar").exists()


async def test_memory_that_climbs_out_of_its_folder_is_not_written(tmp_path, lore_at, told):
    async with Server().run() as server:
        server.answers["GET /memory.tar"] = (200, tar_of({"../up": b"x"}))
        server.works(**{**SEED, "revision": 1, "snapshot": None})
        lore = lore_at(server.url, deadline_seconds=20)
        result = await lore.run(
            worker(shell("ls -a"), done()), "go", conversation_id="c", run_config=config()
        )
        assert result.final_output == "done" and any(isinstance(one, errors.BadArchive) for one in told)
        await lore.aclose()


async def test_a_plain_agent_asks_for_no_seed(lore_at):
    from agents import Agent

    async with Server().run() as server:
        server.answers = {"GET ": "hang", "POST /events": (202, {})}
        lore = lore_at(server.url, deadline_seconds=20)
        await lore.run(Agent(name="p", model=scripted(done())), "go", run_config=plain())
        await lore.aclose()
        assert [request.split(" ")[0] for request, _ in server.requests] == ["POST"]


def test_a_url_that_is_none_is_refused_at_once(lore_at):
    with pytest.raises(errors.InvalidInput, match="is not a URL"):
        lore_at("ftp://x")


async def test_a_run_that_the_service_chokes_on_holds_up_no_other(tmp_path, lore_at, told):
    from agents import Agent

    async with Server().run() as server:
        server.works()
        server.answers["POST /archives"] = (500, {})
        lore = lore_at(server.url, deadline_seconds=20)
        await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
        await lore.run(Agent(name="p", model=scripted(done())), "go", run_config=plain())
        await until(lambda: server.posted("/events"))
        assert json.loads(server.posted("/events")[0])["agents"] == ["p"]
        await lore.aclose()
        assert len(waiting(tmp_path)) == 1


async def test_without_an_outbox_a_run_still_waits_no_longer_than_its_deadline(tmp_path, lore_at, told):
    from agents import Agent

    (tmp_path / "home" / "agents").mkdir(parents=True)
    (tmp_path / "home" / "agents" / "acme.support").write_text("in the way")
    async with Server().run() as server:
        server.answers = {"POST ": "hang"}
        lore = lore_at(server.url, deadline_seconds=0)
        result = await lore.run(Agent(name="p", model=scripted(done())), "go", run_config=plain())
        assert result.final_output == "done"
        # It goes on beside the program.
        await until(lambda: server.posted("/events"))
        # Nothing else is told: the run is not lost yet.
        assert {type(one) for one in told} == {FileExistsError}
        for task in list(lore._tasks):
            task.cancel()
            await asyncio.wait([task])
