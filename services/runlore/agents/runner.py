"""`Runlore`: the SDK's `Runner` with memory before a run, and its record and workspace after it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import agents
from agents import lifecycle
from agents.sandbox.snapshot import NoopSnapshotSpec

from runlore import clock, errors
from runlore.agents import (
    delivery,
    fanout,
    harvest,
    nested,
    outbox,
    port,
    recording,
    runs,
    seeding,
    seen,
    sync,
    workspace,
)
from runlore.events import ids
from runlore.lookup import waiting
from runlore.settings import Settings
from runlore.sources import payloads

log = logging.getLogger("runlore.agents")

FOLDER = "agents"
"""The folder of the home that holds the outbox."""
DEADLINE_SECONDS_EMBEDDED, DEADLINE_SECONDS_REMOTE = 20.0, 5.0
BEHIND_SHARE = 0.25
"""The share of the deadline that a replica is given to catch up with what was seen."""
FOLLOW_SHARE = 0.5
"""The share that a resumed run waits for the one that it goes on from, which another machine may have handed in."""
WAIT_MORE_SECONDS = 10.0
"""What `wait_for` may take longer than it was told: to say what the run waits for."""
STRAIGHT_SECONDS_MAX = 60.0
"""How long a run that found no room on the disk is tried to be handed over, beside the program."""


class Runlore:
    """Memory and workspaces for the runs of one project and memory.

    With a `url` (or `RUNLORE_URL`) the lookup service there is asked, with `key`; without one everything happens in a
    home on this machine, and no server is needed. `subject` says whom the runs are for. No run ever waits longer for
    Runlore than `deadline_seconds`, and none fails because of it: what fails is given to `on_error`, or logged.
    """

    def __init__(
        self,
        project: str,
        memory: str,
        *,
        url: str | None = None,
        key: str | None = None,
        home: str | Path | None = None,
        subject: str | None = None,
        deadline_seconds: float | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        ids.check_name(project, "project")
        ids.check_name(memory, "memory")
        if subject is not None and subject.strip():
            ids.check_id(subject, "subject")
        settings = Settings() if home is None else Settings(home=Path(home))
        where = settings.url if url is None else url
        secret = settings.key.get_secret_value() if key is None else key
        default = DEADLINE_SECONDS_REMOTE if where else DEADLINE_SECONDS_EMBEDDED
        deadline = default if deadline_seconds is None else deadline_seconds
        box = outbox.Outbox(settings.root / FOLDER / f"{project}.{memory}")
        given: dict[str, Any] = {"project": project, "memory": memory}
        given["seeds"] = seen.Seen(box.folder, where, self._failed)
        backend: port.Backend
        if where:
            from runlore.agents import remote

            backend = remote.Remote(
                where,
                secret,
                behind_seconds=deadline * BEHIND_SHARE,
                follow_seconds=deadline * FOLLOW_SHARE,
                **given,
            )
        else:
            from runlore.agents import embedded

            backend = embedded.Embedded(settings, **given)
        self._on_error = on_error
        self.link = runs.Link(
            project=project,
            memory=memory,
            subject=subject,
            deadline_seconds=deadline,
            backend=backend,
            outbox=box,
            delivery=delivery.Delivery(backend, box, self._failed),
            failed=self._failed,
        )
        self.link.lore = self
        self._fans: dict[str, fanout.FanOut] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what a program calls ------------------------------------------------------------------------------

    async def run(self, agent: Any, input: Any, **named: Any) -> agents.RunResult:
        """`Runner.run`, with a seed before it, and its event after it. Its result and its errors are the SDK's."""
        return await self._run(agent, input, named)

    async def _run(
        self, agent: Any, input: Any, named: dict[str, Any], *, branch: fanout.Branch | None = None
    ) -> agents.RunResult:
        run = self._begin(agent, input, named, branch=branch)
        await self._before(run, named)
        token = runs.CURRENT.set(run)
        try:
            result = await agents.Runner.run(agent, input, **named)
        except BaseException as exc:
            await self._ended(run, None, exc)
            raise
        finally:
            runs.CURRENT.reset(token)
        await self._ended(run, result, None)
        return result

    def run_sync(self, agent: Any, input: Any, **named: Any) -> agents.RunResult:
        """`Runner.run_sync`: `run` for a program without an event loop. Inside of one it raises the SDK's error."""
        return sync.run(sync.Entry(self._run), agent, input, named)

    def run_streamed(self, agent: Any, input: Any, **named: Any) -> agents.RunResultStreaming:
        """`Runner.run_streamed`, whose result it returns. The seed is fetched when the stream begins."""
        return self._stream(agent, input, named)

    def _stream(
        self, agent: Any, input: Any, named: dict[str, Any], *, branch: fanout.Branch | None = None
    ) -> agents.RunResultStreaming:
        run = self._begin(agent, input, named, branch=branch)
        session = _live_session(named)
        self._hook(run, named, (lambda: self._refresh(run, session)) if session is not None else None)
        token = runs.CURRENT.set(run)
        try:
            result = agents.Runner.run_streamed(agent, input, **named)
        except BaseException as exc:
            self._put_now(run, None, exc)
            raise
        finally:
            runs.CURRENT.reset(token)
        nested.when_done(result, lambda: self._put_now(run, result, result.run_loop_exception))
        return result

    async def seed(
        self,
        *,
        conversation_id: str | None = None,
        session: Any = None,
        group_id: str | None = None,
        agent: str | None = None,
    ) -> port.Seeded:
        """What a run with these ids would begin with. Raises what Runlore answers, within the deadline."""
        ask = self.ask(conversation_id, session, group_id)
        async with asyncio.timeout(self.link.deadline_seconds):
            await self.link.delivery.flush()
            await self.link.backend.settle()
            found = await self.link.backend.seed(ask, agent)
        self.link.answers()
        return found

    def fan_out(self, rollout: str, *, n: int) -> fanout.FanOut:
        """`n` branches of a rollout, all from its one seed, each with a rollout of its own until they are merged."""
        if not 1 <= n <= fanout.BRANCHES_MAX:
            raise errors.InvalidInput(f"a fan-out has 1 to {fanout.BRANCHES_MAX} branches")
        made = fanout.FanOut(self, ids.check_id(rollout, "rollout"), n)
        self._fans[rollout] = made
        return made

    async def merge(self, rollout: str) -> fanout.Merged:
        """Merge what the branches of the rollout's last fan-out left into its line; the seed after it.

        Raises what Runlore answers, and `errors.NotFound` where nothing was fanned out.
        """
        fan = self._fans.get(rollout)
        if fan is None:
            raise errors.NotFound(f"{rollout!r} was not fanned out by this object")
        noted = fan.noted()
        async with asyncio.timeout(fanout.MERGE_SECONDS_MAX):
            await self.link.delivery.flush()
            for one in noted["branches"].values():
                await self.link.backend.caught_up(port.Ask(run_id="merge", group_id=one))
        done: Mapping[str, Any] = {}
        with contextlib.suppress(errors.NotFound):
            done = await self.link.backend.merge(rollout, noted["branches"], noted["base"])
        seeded = await self.link.backend.seed(port.Ask(run_id="merge", group_id=rollout), None)
        fields = {one.name: getattr(seeded, one.name) for one in dataclasses.fields(seeded)}
        return fanout.Merged(
            **fields,
            state=str(done.get("state", "nothing")),
            merged=tuple(done.get("branches", ())),
            conflicts=tuple(done.get("conflicts", ())),
        )

    async def _seed_for(self, rollout: str) -> port.Seeded | None:
        """The seed of a rollout, or none in time; told, not raised."""
        ask = self.ask(None, None, rollout)
        return await runs.Run(self.link, None, [], ask, parent=None, resumed={}).seeded()

    async def wait_for(
        self,
        run: str | None = None,
        *,
        rollout: str | None = None,
        seconds: float = 60.0,
        with_model: bool = False,
    ) -> port.Ended:
        """How a run has ended (docs/CLI.md lists the ends), once it has; of a rollout without `run`, all its runs.

        Of several ends the one that asks for a person is told. Raises `errors.WaitTimeout`, which says what is waited
        for. Not bound by the deadline of runs.
        """
        name = run or rollout
        if not name:
            raise errors.InvalidInput("say for which run, or for which rollout")
        give_up = clock.monotonic() + seconds
        async with asyncio.timeout(seconds + WAIT_MORE_SECONDS):
            await self.link.delivery.flush()
            await self.link.backend.settle()
            left = max(0.0, give_up - clock.monotonic())
            found = await self.link.backend.wait_for(
                name, rollout=rollout, seconds=left, with_model=with_model
            )
        standing = [one for one in found if one.end != waiting.SUPERSEDED] or list(found)
        return next((one for one in standing if one.end not in waiting.GOOD), standing[-1])

    async def aclose(self) -> None:
        """Hand over what waits, and work it off where this process does that; for at most the deadline."""
        link = self.link
        await link.delivery.end()
        try:
            async with asyncio.timeout(link.deadline_seconds):
                here = [one for one in self._tasks if one.get_loop() is asyncio.get_running_loop()]
                if here:
                    await asyncio.wait(here)
                await link.delivery.flush()
                await link.backend.settle()
        except TimeoutError:
            log.warning("what the outbox holds is delivered at the next start: %s", link.outbox.folder)
        except Exception as exc:
            self._failed("closing", exc)

    def close(self) -> None:
        """`aclose` for a program without an event loop."""
        sync.close(self.aclose)

    def __enter__(self) -> Runlore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Runlore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- before --------------------------------------------------------------------------------------------

    def _begin(
        self, agent: Any, input: Any, named: dict[str, Any], *, branch: fanout.Branch | None = None
    ) -> runs.Run:
        """The run, and `named` with our client in it. Nothing is asked of Runlore yet."""
        config = named.get("run_config")
        if isinstance(config, dict) and "sandbox" in config:
            with contextlib.suppress(Exception):  # What is wrong with it, the SDK says.
                named["run_config"] = config = agents.RunConfig(**config)
        group = config.get("group_id") if isinstance(config, dict) else getattr(config, "group_id", None)
        resumed: Mapping[str, Any] = {}
        follows: str | None = None
        conversation = named.get("conversation_id")
        if recording.is_state(input):
            with contextlib.suppress(Exception):
                current = getattr(input, "_current_agent", None)
                digest = recording.digest_of(input.get_interruptions(), runs.name_of(current))
                resumed = self.link.outbox.recall(digest)
                follows = resumed.get("run_id") or recording.run_before(input, self.link.outbox.sessions)
            conversation = conversation or getattr(input, "_conversation_id", None)
        ask = dataclasses.replace(self.ask(conversation, named.get("session"), group), follows=follows)
        if branch is not None:
            ask = dataclasses.replace(ask, conversation_id=None, session_id=None, group_id=branch.rollout)
        if resumed.get("rollout") and ask.rollout.kind == "run":
            # Without an id of its own the resumed run would be a conversation by itself.
            ask = dataclasses.replace(ask, group_id=resumed["rollout"])
        outer = runs.CURRENT.get()
        # A run for another project, memory or subject is nobody's child: it must not see what that was seeded with.
        parent = outer if outer is not None and outer.link.is_like(self.link) else None
        run = runs.Run(self.link, agent, input, ask, parent=parent, resumed=resumed)
        run.is_expected = True
        if recording.is_state(input):
            run.current = getattr(input, "_current_agent", None) or agent
            run.input = [] if named.get("session") is not None else _input_of(input)
        run.seed_from = branch.first_seed() if branch is not None else None
        try:
            self._put_client_in(named)
            nested.install(self._nested)
        except Exception as exc:
            self._failed("the run's sandbox client", exc)
        return run

    def ask(self, conversation_id: Any, session: Any, group_id: Any) -> port.Ask:
        """A new run with these ids."""
        session_id = None
        with contextlib.suppress(Exception):
            session_id = session.session_id if session is not None else None
        given = {"conversation_id": conversation_id, "session_id": session_id, "group_id": group_id}
        kept = {
            name: runs.usable(value) if isinstance(value, str) and value.strip() else None
            for name, value in given.items()
        }
        # Random digits first: ids that begin with the time look all alike.
        return port.Ask(run_id=clock.new_id()[12:], subject=self.link.subject, **kept)

    def _put_client_in(self, named: dict[str, Any]) -> None:
        config = named.get("run_config")
        sandbox = getattr(config, "sandbox", None)
        if sandbox is None or sandbox.client is None or sandbox.session is not None:
            return
        if isinstance(sandbox.client, workspace.Client):
            return
        state = sandbox.session_state
        own = sandbox.snapshot is not None
        own = own or (state is not None and not workspace.is_ours(self.link, state.snapshot))
        if own:
            self.link.once(
                "the run has a snapshot or a session_state of its own: Runlore leaves the workspace to it"
            )
        client = workspace.Client(sandbox.client, own_snapshot=own, ended=self._took)
        # Not the SDK's default, which would be made below the user's home and never be cleaned.
        snapshot = sandbox.snapshot if own else NoopSnapshotSpec()
        sandbox = dataclasses.replace(sandbox, client=client, snapshot=snapshot)
        named["run_config"] = dataclasses.replace(config, sandbox=sandbox)

    def _hook(self, run: runs.Run, named: dict[str, Any], before: Callable[[], Any] | None) -> None:
        hooks = named.get("hooks")
        if hooks is None or isinstance(hooks, lifecycle.RunHooksBase):
            named["hooks"] = runs.Hooks(run, hooks, before)

    async def _before(self, run: runs.Run, named: dict[str, Any]) -> None:
        """Ask for the seed where there is a place for it. Raises nothing but a cancellation."""
        self._hook(run, named, None)
        session = _live_session(named)
        if session is not None:
            await self._refresh(run, session)
        elif getattr(named.get("run_config"), "sandbox", None) is not None:
            await run.seeded()

    async def _refresh(self, run: runs.Run, session: Any) -> None:
        """Memory into a session that the program owns, once per run."""
        if run.refreshed:
            return
        run.refreshed = True
        run.live.append(session)
        seeding.gate(run, session)
        try:
            is_up = await session.running()
        except Exception:
            is_up = False
        if is_up:
            await seeding.write(run, session)
        else:
            seeding.at_start(run, session)

    # --- after ---------------------------------------------------------------------------------------------

    async def _ended(self, run: runs.Run, result: Any, error: BaseException | None) -> None:
        """Put the run's event into the outbox, and say so. Raises nothing."""
        made = self._made(run, result, error)
        if made is None:
            run.is_expected = False
            await self._edits(run)
            return
        data, left = made
        putting = asyncio.ensure_future(asyncio.to_thread(self._put, run, data, left))
        try:
            self._no_room(data, await asyncio.shield(putting))
        except asyncio.CancelledError:
            # The program is in a hurry; the thread comes to its end all the same.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([putting])
            if putting.done() and not putting.cancelled() and (failed := putting.exception()) is not None:
                self._failed(f"run {run.id} is lost", failed)
            for lost, why in self._put_edits(run):
                self._failed(f"the live edit {lost['edit_id']} is lost", why)
            raise
        except Exception as exc:
            await self._straight(run, data, left, exc)
        await self._edits(run)
        self._say(run)

    async def _edits(self, run: runs.Run) -> None:
        """Take what was edited in the run's memory, and keep it after the run's event."""
        for session in run.live:
            # By now the run's event is out, so what is found goes into the outbox at once.
            await harvest.take_all(session, run)
        if run.edits:
            for data, why in await asyncio.to_thread(self._put_edits, run):
                await self._straight(run, data, [], why)

    def _put_edits(self, run: runs.Run) -> list[tuple[dict[str, Any], Exception]]:
        """Keep what was taken before the run's event was out; blocking. What the outbox did not take, and why."""
        waiting, run.edits = run.edits, []
        failed: list[tuple[dict[str, Any], Exception]] = []
        for data in waiting:
            try:
                harvest.put(run, data)
            except Exception as exc:
                failed.append((harvest.dated(data), exc))
        return failed

    def _put_now(self, run: runs.Run, result: Any, error: BaseException | None) -> None:
        """The same at once, where nothing can be awaited: the loop may end with the stream."""
        made = self._made(run, result, error)
        run.is_expected = made is not None
        for data, why in self._put_edits(run):
            self._beside(self._straight(run, data, [], why))
        if run.live:
            # A session of the program's own lives on: what is not read now is read before its next seed or its stop.
            self._beside(self._edits(run))
        if made is None:
            return
        try:
            self._no_room(made[0], self._put(run, *made))
        except Exception as exc:
            self._beside(self._straight(run, *made, exc))
            return
        self._say(run)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with something beside the program; `aclose` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _took(self, run: runs.Run) -> None:
        """A workspace was taken. Where the run's event is out already, it goes as a higher attempt."""
        if run.attempt and run.record is not None:
            data = run.event(*run.record)
            try:
                self._no_room(data, self._put(run, data, run.left()))
                self.link.delivery.begin()
            except Exception as exc:
                self._failed("the outbox", exc)

    def _made(
        self, run: runs.Run, result: Any, error: BaseException | None
    ) -> tuple[dict[str, Any], list[port.Left]] | None:
        """The event's data. None where the run can not be told, which is told."""
        try:
            found = result if result is not None else getattr(error, "run_data", None)
            items = getattr(found, "new_items", None)
            terminal = (
                recording.terminal_of(result, error)
                if result is not None
                else payloads.terminal_of_exception(error or RuntimeError())
            )
            text = recording.line(
                rollout=ids.alias(run.ask.rollout.original),
                input=run.input,
                items=run.items if items is None else items,
                terminal=terminal,
                interruptions=getattr(result, "interruptions", None) or (),
                final_output=getattr(result, "final_output", None),
            )
            run.record = (text, recording.usage_of(found))
            if getattr(result, "interruptions", None):
                self._remember(run, result)
            return run.event(*run.record), run.left()
        except Exception as exc:
            self._failed("the record of a run", exc)
            return None

    def _remember(self, run: runs.Run, result: Any) -> None:
        with contextlib.suppress(OSError):
            self.link.outbox.remember(
                recording.digest_of(result.interruptions, runs.name_of(result.last_agent)),
                {"run_id": run.id, "rollout": run.ask.rollout.original},
            )

    def _put(self, run: runs.Run, data: dict[str, Any], left: list[port.Left]) -> list[port.Left]:
        """Into the outbox; blocking. The workspaces for which there was no room."""
        for space in (*run.spaces, *run.calls):
            if space.left is not None:
                # Whoever resumes from that file later began from what this run left.
                noted = {"run_id": run.top.id, "agent": space.agent}
                self.link.outbox.remember(f"space-{space.id}", noted)
        return self.link.outbox.put(data, left)

    def _no_room(self, data: Mapping[str, Any], without: list[port.Left]) -> None:
        for one in without:
            full = errors.OutboxFull(f"{self.link.outbox.folder} has no room for {one.path.name}")
            self._failed(f"the workspace of run {data['run_id']}", full)

    async def _straight(
        self, run: runs.Run, data: dict[str, Any], left: list[port.Left], why: Exception
    ) -> None:
        """Without an outbox (a full disk) the run is handed over at once, or it is lost, and told.

        It is waited for as long as the run may be made to wait; after that it goes on beside the program.
        """
        self._failed("the outbox", why)
        sending = asyncio.ensure_future(self._send(data, left))
        self._tasks.add(sending)
        sending.add_done_callback(self._tasks.discard)
        with contextlib.suppress(TimeoutError):
            async with run.waiting():
                await asyncio.shield(sending)
        if delivery.LOOP_STOPS.get() and not sending.done():
            sending.cancel()
            self._failed(f"run {data['run_id']} is lost", TimeoutError("its event loop stops here"))

    async def _send(self, data: dict[str, Any], left: list[port.Left]) -> None:
        try:
            async with asyncio.timeout(STRAIGHT_SECONDS_MAX):
                await self.link.backend.send(data, left)
        except Exception as exc:
            what = f"the live edit {data['edit_id']}" if "edit_id" in data else f"run {data['run_id']}"
            self._failed(f"{what} is lost", exc)

    def _say(self, run: runs.Run) -> None:
        # A loop that ends, a terminal that is gone: neither is the run's concern.
        with contextlib.suppress(RuntimeError, OSError, ValueError):
            self.link.delivery.begin()
            text = f"{run.shown()} · recorded run {run.id}"
            if log.isEnabledFor(logging.INFO):
                log.info("%s", text)
            elif sys.stderr.isatty():
                print(text, file=sys.stderr)

    # --- runs inside of runs -------------------------------------------------------------------------------

    @staticmethod
    def _nested(parent: runs.Run, agent: Any, input: Any, named: dict[str, Any]) -> nested.Child:
        """A run that an agent's tool makes: an event of its own, which names the run that called it."""
        lore = parent.link.lore
        run = lore._begin(agent, input, named)
        of_its_own = run.ask.rollout.kind != "run" and run.ask.rollout != run.top.ask.rollout
        if of_its_own:
            run.top.also.append(run.ask)
        lore._hook(run, named, None)
        return nested.Child(run, lore._ended, lore._put_now)

    def _failed(self, what: str, exc: BaseException) -> None:
        if self._on_error is not None:
            with contextlib.suppress(Exception):
                self._on_error(exc)
            return
        detail = f"{getattr(exc, 'kind', type(exc).__name__)}: {exc}" if str(exc) else type(exc).__name__
        log.warning("the run goes on without Runlore: %s: %s", what, detail)


def _live_session(named: Mapping[str, Any]) -> Any:
    return getattr(getattr(named.get("run_config"), "sandbox", None), "session", None)


def _input_of(state: Any) -> Any:
    """What a resumed run began with."""
    return getattr(state, "_original_input", [])
