"""The ledger: what calls to models took, kept in the store, and asked before each of them.

    CAS: open the call at its bound (or refuse it) → ask → put the answer → CAS: settle it at what it took

One object for a project and UTC month, so that the budgets of all its memories are judged on one version of it:
several workers together never pass a budget by more than what their calls take above their bounds. A lost reply is
looked up by the call's id, so no call counts twice; whoever dies in between leaves a call open, which is counted at
its bound, for good after two hours. A refusal costs nothing while what was read is fresh; a call costs two PUTs, and a
GET where somebody else wrote meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from runlore import clock, errors
from runlore.commit import keys, marks, puts
from runlore.events import envelope
from runlore.models import port, prices, spend
from runlore.store import port as store_port

log = structlog.get_logger("runlore.models")

TRIES_MAX = 64
"""How often one change starts again where others write the same month."""
MONTHS_KNOWN_MAX = 256
"""Months, of all projects, that are remembered as they were read last."""
FRESH_SECONDS = 5.0
"""How old what was read may be where a call is refused by it."""


@dataclass(frozen=True)
class Call:
    """A call that is open."""

    project: str
    month: str
    id: str


@dataclass(frozen=True)
class _Read:
    body: spend.Body
    etag: str | None
    at: float


class Ledger:
    """The ledgers of all projects in one store. Any number of them may work beside each other."""

    def __init__(self, store: store_port.ObjectStore) -> None:
        self._store = store
        self._known: OrderedDict[str, _Read] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    async def month(self, project: str, month: str, *, seconds_max: float = 0.0) -> spend.Body:
        """A month as it is, read at most so long ago; what was open for too long is counted as lost."""
        known = self._known.get(keys.spend(project, month))
        if known is None or clock.monotonic() - known.at > seconds_max:
            known = await self._read(project, month)
        return spend.swept(known.body, clock.now())

    async def refusal(
        self, project: str, memory: str, budgets: spend.Budgets, wanted: spend.Bound
    ) -> spend.Refusal | None:
        """Why such a call may not be made now, by what was read a few seconds ago."""
        now = clock.now()
        body = await self.month(project, spend.month_of(now), seconds_max=FRESH_SECONDS)
        return spend.refusal(body, budgets, memory, now, wanted)

    async def open(self, project: str, memory: str, budgets: spend.Budgets, wanted: spend.Bound) -> Call:
        """A call that is counted from now on. Raises `errors.OverBudget`, which the ledger then says too."""
        now = clock.now()
        call = Call(project, spend.month_of(now), clock.new_id())
        why: spend.Refusal | None = None

        def change(body: spend.Body) -> spend.Body:
            nonlocal why
            body = spend.swept(body, now)
            if call.id in body["open"]:  # The reply to an earlier try was lost.
                why = None
                return body
            why = spend.refusal(body, budgets, memory, now, wanted)
            if why is not None:
                return body if why.is_open else spend.deferring(body, memory, why, now)
            return spend.opened(body, call.id, memory, wanted, now=now)

        await self._change(call.project, call.month, change, is_refused=lambda: why is not None)
        if why is not None:
            raise errors.OverBudget(
                why.told,
                hint="`runlore spend` shows what was spent, and what limits it",
                until=why.until,
                is_open=why.is_open,
            )
        return call

    async def defer(
        self, project: str, memory: str, budgets: spend.Budgets, wanted: spend.Bound
    ) -> spend.Refusal | None:
        """Say that a memory waits for budget, also where what is open alone keeps it out; why it does, if it does."""
        now = clock.now()
        why: spend.Refusal | None = None

        def change(body: spend.Body) -> spend.Body:
            nonlocal why
            why = spend.refusal(body, budgets, memory, now, wanted)
            return body if why is None else spend.deferring(body, memory, why, now)

        await self._change(project, spend.month_of(now), change, is_refused=lambda: why is not None)
        return why

    async def settle(self, call: Call, usage: port.Usage | None, cost_usd: float | None) -> None:
        """Count an open call at what it took; at its bound where the endpoint did not say (`usage` None)."""
        await self._change(
            call.project, call.month, lambda body: spend.settled(body, call.id, usage, cost_usd)
        )

    async def drop(self, call: Call) -> None:
        """Forget an open call that was surely not billed."""
        await self._change(call.project, call.month, lambda body: spend.dropped(body, call.id))

    async def _change(
        self,
        project: str,
        month: str,
        change: Callable[[spend.Body], spend.Body],
        *,
        is_refused: Callable[[], bool] = lambda: False,
    ) -> None:
        """Move the month by `change`, which is a function of what is there and finds its own work done."""
        key = keys.spend(project, month)
        async with self._locks.setdefault(key, asyncio.Lock()):
            refused: errors.RunloreError | None = None
            for attempt in range(TRIES_MAX):
                known = self._known.get(key) or await self._read(project, month)
                body = change(known.body)
                if is_refused() and clock.monotonic() - known.at > FRESH_SECONDS:
                    known = await self._read(project, month)
                    body = change(known.body)
                if body is known.body:
                    return
                try:
                    etag = await self._store.compare_and_set(key, envelope.dump(body), known.etag)
                    self._remember(key, _Read(body, etag, clock.monotonic()))
                    return
                except (errors.PreconditionFailed, errors.OutcomeUnknown) as exc:
                    self._known.pop(key, None)  # Somebody else's write, or this one: the next look tells.
                    refused = exc
                except (errors.WriteConflict, errors.StoreUnavailable) as exc:
                    refused = exc
                await puts.wait(min(attempt, 5))
        raise errors.StoreUnavailable(f"what was spent can not be written to {key}", key=key) from refused

    async def _read(self, project: str, month: str) -> _Read:
        key, began = keys.spend(project, month), clock.monotonic()
        stored = await self._store.get(key)
        body = parse(key, stored.body) if stored is not None else spend.empty(project, month)
        found = _Read(body, stored.etag if stored is not None else None, began)
        self._remember(key, found)
        return found

    def _remember(self, key: str, found: _Read) -> None:
        self._known[key] = found
        self._known.move_to_end(key)
        while len(self._known) > MONTHS_KNOWN_MAX:
            self._known.popitem(last=False)


class Metered:
    """An engine whose calls are counted for one memory, and refused over its budgets."""

    def __init__(
        self,
        engine: port.Engine,
        ledger: Ledger,
        project: str,
        memory: str,
        *,
        budgets: spend.Budgets,
        table: prices.Table,
    ) -> None:
        self._engine, self._ledger = engine, ledger
        self._project, self._memory = project, memory
        self._budgets, self._table = budgets, table
        self.refused: spend.Bound | None = None
        """The call that was refused last, if any was."""

    async def ask(self, ask: port.Ask) -> port.Answer:
        """As the engine's. Raises `errors.OverBudget` before anything is asked."""
        async with self.counted(ask) as answer:
            return answer

    @contextlib.asynccontextmanager
    async def counted(self, ask: port.Ask) -> AsyncIterator[port.Answer]:
        """The answer, to be kept within: only then what it took is settled, so a crash before that pays for nothing
        twice, and leaves a call open. Raises as `ask`.
        """
        wanted = spend.bound(ask, self._table)
        try:
            call = await self._ledger.open(self._project, self._memory, self._budgets, wanted)
        except errors.OverBudget:
            self.refused = wanted
            raise
        try:
            answer = await self._engine.ask(replace(ask, project=self._project))
        except errors.NoAnswer as exc:
            # It answered, if nothing of use; before its usage is told, it was refused without a look at it.
            usage = usage_of(exc)
            is_billed = usage is not None or "cost_usd" in exc.context
            await self._end(call, usage, exc.context.get("cost_usd"), is_billed=is_billed)
            raise
        except errors.RunloreError as exc:
            await self._end(call, None, None, is_billed=bool(exc.context.get("may_be_paid")))
            raise
        try:
            yield answer
        except Exception:
            await self._end(call, answer.usage, answer.cost_usd)
            raise
        await self._end(call, answer.usage, answer.cost_usd)

    async def close(self) -> None:
        await self._engine.close()

    async def _end(
        self, call: Call, usage: port.Usage | None, cost_usd: float | None, *, is_billed: bool = True
    ) -> None:
        try:
            if is_billed:
                await self._ledger.settle(call, usage, cost_usd)
            else:
                await self._ledger.drop(call)
        except (errors.RunloreError, OSError) as exc:
            # What was answered is worth more than its exact price: open, it counts at its bound.
            log.warning("what a call took is not written", cause=getattr(exc, "kind", "error"))


def usage_of(exc: errors.NoAnswer) -> port.Usage | None:
    """The tokens that an answer took which could not be used, where the endpoint said so."""
    names = port.Usage.__dataclass_fields__
    if not {"input_tokens", "output_tokens"} <= exc.context.keys():
        return None
    return port.Usage(**{name: int(exc.context[name]) for name in names if name in exc.context})


async def months(store: store_port.ObjectStore, project: str, now: dt.datetime) -> list[spend.Body]:
    """Every month of a project that is kept, oldest first."""
    found = [row.key async for row in store.list(f"{project}/{keys.SPEND}/")]
    out = [
        spend.swept(parse(key, one.body), now)
        for key, one in zip(found, await store.get_many(found), strict=True)
        if one is not None
    ]
    return sorted(out, key=lambda body: body["month"])


async def month_of_all(
    store: store_port.ObjectStore, month: str, now: dt.datetime, projects: Sequence[str] | None = None
) -> dict[str, spend.Body]:
    """One month of every project that has spent in it, or of those that are named."""
    named = list(projects) if projects is not None else await marks.projects(store)
    found = [keys.spend(one, month) for one in named]
    read = await store.get_many(found)
    return {
        name: spend.swept(parse(key, one.body), now)
        for name, key, one in zip(named, found, read, strict=True)
        if one is not None
    }


def parse(key: str, raw: bytes) -> spend.Body:
    """The month in an object's bytes. Raises `errors.Corrupt`; `errors.Fatal` on a newer format."""
    try:
        body = envelope.kept(raw)
        if body["format"] != spend.FORMAT:
            raise errors.Fatal(
                f"{key} has the format {body['format']!r}; this Runlore reads {spend.FORMAT!r}",
                hint="run the newer version of Runlore that wrote it",
            )
        if keys.spend(body["project"], body["month"]) != key:
            raise ValueError
        if not all(isinstance(body[name], dict) for name in ("days", "open", "deferred")):
            raise TypeError
        return body
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(
            f"the ledger {key} is not one",
            hint="deleting it forgets what that month cost",
            key=key,
        ) from None
