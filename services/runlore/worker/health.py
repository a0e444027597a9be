"""Health: how a worker is, over HTTP: `/livez`, `/readyz`, `/status`, `/metrics` (docs/METRICS.md).

The server is a thread of its own (the standard library's), not a task of the worker's loop: a loop that hangs can then
still say so, and its metrics are there when they are needed most. Twice a second a task on the loop notes how the
worker is; the thread only reads what was noted, so it shares no state that changes. Nothing here is a dependency that
`runlore[server]` does not have: `prometheus_client` makes the text of `/metrics`, if it is there.

Live means that the loop runs and every stage's polls go on. A broker or a bucket that is away, a blocked or failed
stage make nobody unlive, because a restart heals none of them: their polls go on, and end in a fault. Ready means that
the stages have joined and the index has caught up: once, at the start. What happens to a stage later does not take that
back.

    async with health.serve(worker, settings):      # `runlore up`, `worker`, `index`: around `worker.run()`
        await worker.run()

`python -m runlore.worker.health` asks `/livez`: the health check of an image without curl.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import shutil
import socket
import socketserver
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref import simple_server

import structlog

from runlore import __version__, clock, errors, pipeline, telemetry
from runlore.settings import Settings
from runlore.upkeep import pauses

if TYPE_CHECKING:
    from runlore.worker.loop import Worker

log = structlog.get_logger("runlore.health")

LIVE_SECONDS_MAX = 30.0
"""How long the event loop may stand still before `/livez` says so."""
POLL_SECONDS_MAX = 300.0
"""How long ago a stage's last poll may have ended, well or not; never less than a few of its waits between tries."""
TICK_SECONDS = 0.5
SAMPLE_SECONDS = 15.0
"""How often the bus is asked for lag and ages."""
REQUEST_SECONDS_MAX = 5.0
"""How long a client may take over its request."""
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to ask a server that listens everywhere."""


@dataclasses.dataclass(frozen=True)
class Noted:
    """How the worker was at one tick."""

    at: float
    """Monotonic seconds."""
    not_ready: tuple[str, ...]
    hangs: tuple[str, ...]
    """Stages whose polls do not go on."""
    status: dict[str, Any]


class Health:
    """What a worker's probes answer."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self._worker, self._settings = worker, settings
        self._ready: set[str] = set()
        """Stages that were ready once."""
        self._rebalances: dict[str, int] = {}
        self._late = 0.0
        """The latest tick since the last scrape, in seconds."""
        self.noted = self._note()

    # --- on the loop --------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Note how the worker is, until cancelled."""
        while True:
            due = clock.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self._late = max(self._late, clock.monotonic() - due)
            try:
                self.noted = self._note()
            except Exception:
                # A bug here is no reason to restart a worker that works: the loop runs.
                log.exception("can not note how the worker is")
                self.noted = dataclasses.replace(self.noted, at=clock.monotonic())

    def _note(self) -> Noted:
        stages = {}
        for name, one in self._worker.progress.stages.items():
            intake = self._worker.intakes.get(name)
            state = "paused" if (one.cause or "").startswith(pauses.StagePaused.kind) else one.state
            stages[name] = {**dataclasses.asdict(one), "state": state}
            telemetry.stage_state(name, state)
            if intake is not None:
                stages[name] |= {"in_flight": intake.records, "parked": intake.parked}
                stages[name] |= {"partitions": len(intake.assigned_partitions)}
                telemetry.PARKED.set(intake.parked, stage=name)
                telemetry.IN_FLIGHT.set(intake.records, stage=name)
                telemetry.IN_FLIGHT_BYTES.set(intake.size, stage=name)
                telemetry.REBALANCES.inc(intake.rebalances - self._rebalances.get(name, 0), stage=name)
                self._rebalances[name] = intake.rebalances
        stuck = sum(len(one.memories) for one in self._worker.progress.stages.values())
        telemetry.MEMORIES_STUCK.set(stuck)
        not_ready = tuple(self._not_ready())
        status = {"version": __version__, "ready": not not_ready, "not_ready": not_ready, "stages": stages}
        return Noted(clock.monotonic(), not_ready, tuple(self._hangs()), status)

    def _hangs(self) -> Iterable[str]:
        longest = max(POLL_SECONDS_MAX, 4 * self._settings.retry_seconds_max)
        for name, intake in self._worker.intakes.items():
            # Joining may wait for a person, and a worker that drains polls no more.
            silent = clock.monotonic() - intake.polled_at
            if intake.joined and silent > longest and not self._worker.stopping.is_set():
                yield f"{name} has not polled for {silent:.0f} seconds"

    def _not_ready(self) -> Iterable[str]:
        if self._worker.stopping.is_set():
            yield "the worker drains"
        for name in sorted(self._worker.stages - self._ready):
            intake = self._worker.intakes.get(name)
            if name == "summarize":
                self._ready.add(name)  # It reads no topic: there is nothing to join.
            elif intake is None or not intake.joined:
                yield f"{name} has not joined its group"
            elif name == "index" and not self._worker.caught_up:
                yield "the index has not caught up with the heads"
            else:
                self._ready.add(name)

    async def sample(self) -> None:
        """Measure lag, ages and disk from outside, until cancelled. What can not be asked keeps its last value."""
        told = ""
        while True:
            try:
                await self._sample()
                told = ""
            except (errors.RunloreError, OSError) as exc:
                why = f"{getattr(exc, 'kind', type(exc).__name__)}: {exc}"
                if why != told:
                    log.warning("can not measure", cause=why)
                told = why
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _sample(self) -> None:
        usage = await asyncio.to_thread(_disk, self._settings.root)
        telemetry.DISK_FREE.set(usage)
        if "index" in self._worker.stages:
            telemetry.HELD.set(self._worker.rollouts_held())
        # Every worker measures every stage, also those that it does not run: whoever is left can tell.
        for stage in (pipeline.RECORD, pipeline.SNAPSHOT):
            lag = await self._worker.bus.lag(group=stage.name, topic=stage.reads)
            for partition, count in lag.items():
                telemetry.LAG.set(count, stage=stage.name, partition=str(partition))
            oldest = await self._worker.bus.oldest(group=stage.name, topic=stage.reads)
            age = clock.now().timestamp() - oldest if oldest is not None else 0.0
            telemetry.OLDEST_AGE.set(max(0.0, age), stage=stage.name)
        telemetry.SAMPLED.set(clock.now().timestamp())

    # --- on the server's threads --------------------------------------------------------------------------

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """(status, JSON object) of a probe. Raises `KeyError` for a path that there is not."""
        noted, still = self.noted, clock.monotonic() - self.noted.at
        reasons = list(noted.hangs)
        if still >= LIVE_SECONDS_MAX:
            reasons.append(f"the event loop has stood still for {still:.0f} seconds")
        is_live = not reasons
        answers = {
            "/livez": (is_live, {"live": is_live, "reasons": reasons}),
            "/readyz": (
                is_live and not noted.not_ready,
                {"ready": is_live and not noted.not_ready, "reasons": [*reasons, *noted.not_ready]},
            ),
            "/status": (True, {**noted.status, "live": is_live, "noted_seconds_ago": round(still, 1)}),
        }
        well, body = answers[path]
        return 200 if well else 503, body

    def scraped(self) -> None:
        """Tell how late the loop was at worst since the last scrape, also while it stands still."""
        still = clock.monotonic() - self.noted.at - TICK_SECONDS
        telemetry.LOOP_DELAY.set(max(self._late, still, 0.0))
        self._late = 0.0


@contextlib.asynccontextmanager
async def serve(worker: Worker, settings: Settings) -> AsyncIterator[Health | None]:
    """Answer probes and scrapes for `worker` meanwhile; nothing where `RUNLORE_HEALTH_PORT` is 0.

    Raises `errors.Refused` where the port can not be opened.
    """
    if not settings.health_port:
        yield None
        return
    telemetry.start_metrics()
    health = Health(worker, settings)
    try:
        async with _serving(health, settings.health_address, settings.health_port):
            tasks = [asyncio.create_task(work()) for work in (health.tick, health.sample)]
            try:
                yield health
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        telemetry.stop_metrics()


@contextlib.asynccontextmanager
async def _serving(health: Health, address: str, port: int) -> AsyncIterator[None]:
    try:
        server = await asyncio.to_thread(_listen, health, address, port)
    except OSError as exc:
        raise errors.Refused(
            f"{address}:{port} can not be opened for probes: {exc.strerror or exc}",
            hint="RUNLORE_HEALTH_PORT and RUNLORE_HEALTH_ADDRESS say where; 0 is no port",
        ) from exc
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="runlore-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


class _Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or is too slow is no news."""


class _Handler(simple_server.WSGIRequestHandler):
    timeout = REQUEST_SECONDS_MAX

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds."""


def _listen(health: Health, address: str, port: int) -> _Server:
    family, *_, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind = type("Server", (_Server,), {"address_family": family})
    return simple_server.make_server(where[0], port, _app(health), server_class=kind, handler_class=_Handler)


def _app(health: Health) -> Callable[..., Iterable[bytes]]:
    """The WSGI application."""
    phrases = http.client.responses

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        status, body = 405, {"error": "only GET is answered"}
        if environ["REQUEST_METHOD"] == "GET":
            if path == "/metrics":
                metrics = telemetry.metrics_app()
                if metrics is not None:
                    health.scraped()
                    return metrics(environ, start)
                status, body = (
                    501,
                    {"error": "no metrics without prometheus-client: pip install 'runlore[server]'"},
                )
            else:
                try:
                    status, body = health.answer(path)
                except KeyError:
                    status, body = 404, {"paths": ["/livez", "/readyz", "/status", "/metrics"]}
        raw = json.dumps(body, indent=1).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(raw)))]
        start(f"{status} {phrases[status]}", [*headers, ("Cache-Control", "no-store")])
        return [raw]

    return app


def _disk(root: Path) -> int:
    """Free bytes where `root` is, or will be."""
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free


def check(settings: Settings, path: str = "/livez") -> tuple[int, str]:
    """(exit code, what to print) of a worker's own health check: 0 where it answers 200."""
    if not settings.health_port:
        return 0, "RUNLORE_HEALTH_PORT is not set: there is nothing to ask"
    address = ANY.get(settings.health_address, settings.health_address)
    connection = http.client.HTTPConnection(address, settings.health_port, timeout=REQUEST_SECONDS_MAX)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return int(answer.status != 200), answer.read().decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as exc:
        return 1, f"{address}:{settings.health_port} does not answer: {exc}"
    finally:
        connection.close()


if __name__ == "__main__":
    code, said = check(Settings(), *sys.argv[1:2])
    print(said)
    sys.exit(code)
