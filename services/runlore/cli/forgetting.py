"""Commands about what is not kept: forget, and verify, which also checks that what was forgotten is gone; upkeep."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.store.port import ObjectStore
    from runlore.upkeep.erasing.asking import Wanted
    from runlore.upkeep.erasing.eraser import Eraser
    from runlore.wiring import Home

IdOption = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="A run, with its live edits.", show_default=False)
]
RolloutOption = Annotated[
    str | None,
    typer.Option("--rollout", metavar="ID", help="A rollout: all of its runs, for good.", show_default=False),
]
SubjectOption = Annotated[
    str | None,
    typer.Option("--subject", metavar="S", help="Whom runs were for: all of theirs.", show_default=False),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", "-m", help="Only in this memory; alone: the whole of it.", show_default=False),
]
RATE = 500
"""Requests to the store that upkeep makes in a second at most, unless it is told otherwise."""
TOLD_MAX = 20
LISTED_MAX = 1000
"""Rollouts past their days that a dry run lists."""


def register(app: typer.Typer) -> None:
    for command in (forget, verify, upkeep):
        app.command()(command)


def forget(
    project: ui.MaybeProject = None,
    run: IdOption = None,
    rollout: RolloutOption = None,
    subject: SubjectOption = None,
    memory: MemoryOption = None,
    snapshots: Annotated[
        str, typer.Option("--snapshots", metavar="erase|keep", help="What becomes of its workspaces.")
    ] = "erase",
    strict: Annotated[
        bool, typer.Option("--strict", help="Make the notes anew from the runs that are left.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it names; do nothing.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with every erasure that is not done.")
    ] = False,
    again: Annotated[
        Path | None,
        typer.Option(
            "--again",
            metavar="RECEIPT",
            help="Do again what a receipt says: after a restore.",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the erasures of a project.")] = False,
    receipt: Annotated[
        str | None, typer.Option("--receipt", metavar="ID", help="Print one's receipt.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Erase a run, a rollout, all that was for a subject, or a memory, from everything that Runlore keeps.

    Nothing of it can be reached any more once this has run (its first date); no byte of it is left once a term of three
    days is over and `runlore upkeep` has run (its second). It is not undone. The receipt says what was removed, which
    later runs began from it, and what is not Runlore's to erase: docs/ERASURE.md. Interrupted, --resume goes on.

    Example: runlore forget --project acme --subject anna@example.com --reason "ticket 4711"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.upkeep.erasing import asking

        if not project and not again:
            raise errors.InvalidInput("say which --project")
        named = {"run": run, "rollout": rollout, "subject": subject, "memory": memory}
        async with wiring.open_home(ui.settings_of(home)) as opened:
            if receipt is not None:
                await _receipt(out, opened, str(project), receipt)
            elif again is not None:
                await _again(out, opened, again, ui.needs_reason(reason))
            elif resume:
                await _resume(out, opened, str(project), ui.needs_reason(reason))
            elif listed or not any(named.values()):
                await _list(out, opened, str(project))
            else:
                wanted = asking.wanted_of(project=str(project), snapshots=snapshots, strict=strict, **named)
                await _forget(out, opened, wanted, dry_run=dry_run, yes=yes, reason=reason)

    ui.run(work, as_json=as_json)


async def _forget(
    out: ui.Out, opened: Home, wanted: Wanted, *, dry_run: bool, yes: bool, reason: str
) -> None:
    plan = await _eraser(opened, wanted.project).plan(wanted)
    told = f"{plan['records']} records of {plan['rollouts']} rollouts in {', '.join(plan['memories']) or 'no memory'}"
    if dry_run:
        out.answer({"dry_run": True, **plan})
        out.say(f"would erase {told}")
        for one in plan["targets"]:
            named = "all of it" if one["runs"] is None else f"runs {', '.join(one['runs'])}"
            out.say(f"  {one['memory']}/{one['rollout']}: {named}")
        return
    why = ui.needs_reason(reason)
    ui.confirm(out, f"Erase {told}? It is not undone.", yes=yes, what="this erases")
    # The alias alone: a subject is often an address.
    given = {"scope": wanted.scope, "name": wanted.alias, "memory": wanted.memory, "strict": wanted.strict}
    async with ui.acting(opened, "forget", projects=[wanted.project], reason=why, arguments=given) as act:
        with out.progress() as bar:
            task = bar.add_task("forget", total=None, detail="")
            eraser = _eraser(
                opened, wanted.project, lambda count, what: bar.update(task, completed=count, detail=what)
            )
            entry = await eraser.begin(wanted)
            act.result["erasure"] = entry.body["id"]
            entry = await eraser.carry_on(str(entry.body["id"]))
        await _let_go(opened)
        act.result |= {"state": entry.body["state"], "removed": entry.body["removed"]}
    _tell(out, entry.body)


def _eraser(opened: Home, project: str, show: Any = None, *, store: ObjectStore | None = None) -> Eraser:
    """`store`: in place of the home's own, where it is to be asked less often."""
    from runlore.upkeep.erasing import eraser
    from runlore.worker import concurrency

    return eraser.Eraser(
        store or opened.store,
        opened.bus,
        project,
        runtime=concurrency.runtime(1),
        on_progress=show or eraser.nothing,
    )


async def _let_go(opened: Home) -> None:
    """This machine's index follows at once, and keeps no free page. Others compare it within their interval."""
    from runlore.lookup import index as lookup_index

    if opened.index_path.exists():
        index = lookup_index.Index(opened.index_path)
        try:
            await lookup_index.reconcile(index, opened.store)
            index.vacuum()
        finally:
            index.close()


def _tell(out: ui.Out, body: Any) -> None:
    from runlore.upkeep.erasing import receipts

    said = receipts.of(body)
    out.answer({"receipt": said})
    name = "the memory" if said["scope"] == "memory" else f"the {said['scope']}"
    out.say(f"erasure {said['id']}: {name} {said['name']} is {said['state']}")
    removed = ", ".join(f"{count} {what}" for what, count in said["removed"].items())
    out.say(f"  removed       {removed or 'nothing yet'}")
    for memory, (first, last) in said["revisions"].items():
        out.say(f"  {memory}: revisions {first} to {last} answer `erased` from now on")
    out.say(f"  first date    {said['first_at'] or 'not before ' + str(said['next_pass_at'])}")
    out.say(f"  second date   {said['second_at'] or 'not before ' + str(said['next_pass_at'])}")
    if total := said["seeded"]["total"]:
        out.say(f"  {total} later runs began from it, and may repeat it: the receipt lists them")
    for what, count in said["left"].items():
        out.say(f"  left          {count} {what}")
    out.note(f"not ours to erase: {'; '.join(said['elsewhere'])}")
    if said["next_pass_at"]:
        out.note(f"next: `runlore upkeep --project {said['project']}` from {said['next_pass_at']} on")


async def _receipt(out: ui.Out, opened: Home, project: str, name: str) -> None:
    from runlore.commit import erasures

    _tell(out, (await erasures.read(opened.store, project, name)).body)


async def _list(out: ui.Out, opened: Home, project: str) -> None:
    from runlore.commit import erasures

    found = [one.body async for one in erasures.every(opened.store, project)]
    columns = ("id", "scope", "name", "state", "asked_at", "first_at", "second_at")
    rows = [
        {name: one[name] for name in columns} for one in sorted(found, key=lambda one: str(one["asked_at"]))
    ]
    out.answer({"project": project, "erasures": rows})
    if not rows:
        out.say(f"nothing was erased of project {project}")
        return
    out.table(columns, [[row[name] or "" for name in columns] for row in rows])


async def _resume(out: ui.Out, opened: Home, project: str, why: str) -> None:
    from runlore.upkeep.erasing import eraser as erasing

    unfinished = await erasing.unfinished(opened.store, project)
    done = []
    if unfinished:
        async with ui.acting(opened, "forget resume", projects=[project], reason=why):
            one = _eraser(opened, project)
            done = [(await one.carry_on(str(entry.body["id"]))).body for entry in unfinished]
            await _let_go(opened)
    rows = [{"id": body["id"], "state": body["state"], "first_at": body["first_at"]} for body in done]
    out.answer({"project": project, "erasures": rows})
    for row in rows:
        out.say(f"erasure {row['id']} is {row['state']}")
    if not rows:
        out.say("every erasure is done")


async def _again(out: ui.Out, opened: Home, path: Path, why: str) -> None:
    import asyncio

    from runlore.commit import erasures
    from runlore.upkeep.erasing import receipts

    said = receipts.parse(await asyncio.to_thread(path.read_bytes))
    project, name = str(said["project"]), str(said["id"])
    given = {"erasure": name}
    async with ui.acting(opened, "forget again", projects=[project], reason=why, arguments=given):
        entry = receipts.as_entry(said)
        row = erasures.Row(**said["row"]) if said["row"] else None
        await erasures.begin(opened.store, project, name, entry, row)
        await erasures.note(
            opened.store, project, name, {"state": erasures.OPEN, "first_at": None, "second_at": None}
        )
        done = await _eraser(opened, project).carry_on(name)
        await _let_go(opened)
    _tell(out, done.body)


# --- verify ---------------------------------------------------------------------------------------------------


def verify(
    project: ui.MaybeProject = None,
    erased: Annotated[
        Path | None,
        typer.Option(
            "--erased",
            metavar="RECEIPT",
            help="Check instead that what a receipt of `runlore forget` says is gone.",
            show_default=False,
        ),
    ] = None,
    needles: Annotated[
        Path | None,
        typer.Option(
            "--needle-file",
            metavar="FILE",
            help="With --erased: texts, one a line, that no byte may hold.",
            show_default=False,
        ),
    ] = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Check every invariant on what is stored: reads and hashes every head, manifest, pack and record.

    With --erased it checks an erasure: that no head, revision or record shows it, and with --needle-file that no byte
    of the store, the bus or this machine's files holds any of the texts given.

    Example: runlore verify
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.upkeep import verify as upkeep_verify

        if erased is not None or needles is not None:
            await _prove(out, home, erased, needles)
            return
        async with wiring.open_home(ui.settings_of(home)) as opened:
            with out.progress() as bar:
                task = bar.add_task("verify", total=None, detail="")
                found = await upkeep_verify.verify(
                    opened.store,
                    opened.bus,
                    project=project,
                    on_progress=lambda n, what: bar.update(task, completed=n, detail=what),
                )
        problems = [
            {"invariant": one.invariant, "where": one.where, "what": one.what} for one in found.violations
        ]
        for one in problems:
            out.say(f"[{one['invariant']}] {one['where']}: {one['what']}")
        checked = ", ".join(f"{count} {what}" for what, count in found.checked.items())
        if problems:
            out.answer({"ok": False, "checked": found.checked, "problems": problems})
            raise errors.ProblemsFound(
                f"{len(problems)} problems in {checked}", hint="docs/DESIGN.md says what each invariant means"
            )
        out.answer({"ok": True, "checked": found.checked, "problems": []})
        out.say(
            f"all invariants hold: {checked}"
            if checked
            else "there is nothing yet, and nothing wrong with it"
        )

    ui.run(work, as_json=as_json)


async def _prove(out: ui.Out, home: Path | None, erased: Path | None, needles: Path | None) -> None:
    """Raises `errors.ProblemsFound`."""
    import asyncio

    from runlore import errors, wiring
    from runlore.upkeep.erasing import proof, receipts

    if erased is None:
        raise errors.InvalidInput("--needle-file needs --erased RECEIPT")
    said = receipts.parse(await asyncio.to_thread(erased.read_bytes))
    texts = await asyncio.to_thread(needles.read_text, "utf-8") if needles is not None else ""
    wanted = proof.needles_in(texts)
    settings = ui.settings_of(home)
    async with wiring.open_home(settings) as opened:
        with out.progress() as bar:
            task = bar.add_task("verify", total=None, detail="")
            found = await proof.prove(
                opened.store,
                opened.bus,
                said,
                needles=wanted,
                home=opened.root,
                on_progress=lambda count, what: bar.update(task, completed=count, detail=what),
            )
    scanned = ", ".join(f"{count} {what}" for what, count in sorted(found.scanned.items()))
    out.answer(
        {"ok": not found.problems, "scanned": found.scanned, "problems": found.problems, "bus": found.bus}
    )
    for one in found.bus:
        out.say(f"{one['where']}: the bus keeps a message that holds one of the needles until {one['until']}")
    for one in found.problems:
        out.say(f"{one['where']}: {one['what']}")
    if found.problems:
        raise errors.ProblemsFound(
            f"{len(found.problems)} places show what was erased",
            hint="`runlore forget --resume` goes on; after a restore `runlore forget --again RECEIPT` does it anew",
        )
    out.say(f"nothing of erasure {said['id']} is shown" + (f", nor in {scanned}" if scanned else ""))
    if not wanted:
        out.note("names alone were checked: --needle-file FILE looks for texts in every byte, too")
    elif not said["second_at"]:
        out.note("its second date is not reached: what is in its term would be found, and still go")


# --- upkeep ---------------------------------------------------------------------------------------------------


def upkeep(
    project: ui.MaybeProject = None,
    keep_days: Annotated[
        int | None,
        typer.Option(
            "--keep-days",
            min=1,
            max=36_500,
            metavar="DAYS",
            help="Erase rollouts whose last run ended longer ago, where nothing is administered.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due; do nothing.")] = False,
    per_second: Annotated[
        float,
        typer.Option(
            "--per-second",
            min=1,
            max=100_000,
            metavar="N",
            help="Requests to the store a second, at most; each object deleted counts as one.",
        ),
    ] = RATE,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Do what is due: go on with erasures, erase what is past its days, sweep what nothing names any more.

    For a schedule, once an hour or a day. It may run beside everything else and twice at once; interrupted, the next
    one goes on. Rollouts are erased as `runlore forget` does it, so a replay brings none back.

    Example: runlore upkeep --keep-days 365 --reason "nightly"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.commit import sweep

        why = "" if dry_run else ui.needs_reason(reason)
        async with wiring.open_home(ui.settings_of(home)) as opened:
            names = [project] if project else await sweep.projects(opened.store)
            rows = []
            for name in names:
                rows.append(await _kept_up(out, opened, name, keep_days, per_second, dry_run, why))
            if not dry_run and any(row["erasures"] for row in rows):
                await _let_go(opened)
        out.answer({"dry_run": dry_run, "projects": rows})
        for row in rows:
            would = "would go on with" if dry_run else "went on with"
            out.say(
                f"{row['project']}: {would} {len(row['erasures'])} erasures · {row['past']} rollouts past their days"
                f" · {row['swept']} objects {'to sweep' if dry_run else 'swept'}"
            )
            if row["problem"]:
                out.note(f"{row['project']} is not swept: {row['problem']}")
            for one in row["erasures"]:
                out.say(f"  erasure {one['id']} ({one['scope']} {one['name']}) is {one['state']}")
            for one in row.get("rollouts", ())[:TOLD_MAX]:
                out.say(
                    f"  would erase {one['memory']}/{one['rollout']}, whose last run ended {one['ended_at'][:10]}"
                )
            if dry_run and row["past"] > TOLD_MAX:
                out.say(f"  … and {row['past'] - TOLD_MAX} more; --json lists {LISTED_MAX}")
        if not rows:
            out.say("there is nothing yet")

    ui.run(work, as_json=as_json)


async def _kept_up(
    out: ui.Out,
    opened: Home,
    project: str,
    keep_days: int | None,
    per_second: float,
    dry_run: bool,
    why: str,
) -> dict[str, Any]:
    """What was done for one project, or is due."""
    from runlore import clock, errors
    from runlore.commit import sweep
    from runlore.store import paced
    from runlore.upkeep import administration, organization, retention
    from runlore.upkeep.erasing import eraser as erasing

    with out.progress() as bar:
        task = bar.add_task(project, total=None, detail="")
        show = lambda count, what: bar.update(task, completed=count, detail=what)  # noqa: E731
        store = paced.Paced(opened.store, per_second=per_second)
        one = _eraser(opened, project, show, store=store)
        past = []
        # What is administered goes before what this machine says.
        # Read for each: whoever says "keep" while this goes through many projects is heard.
        said = (await administration.read(opened.store)).retention_of(project)
        if said.type != organization.KEEP:
            keep_days = said.days
        if keep_days is not None:
            # What an open erasure names is its to erase: one that was interrupted is not asked for twice.
            named = erasing.whole_rollouts_of(await erasing.unfinished(store, project))
            found = [each async for each in retention.due(store, project, days=keep_days)]
            past = [each for each in found if (each.memory, each.rollout) not in named]
        due = await erasing.due(store, project)
        problem = None
        try:
            plan = await sweep.scan(store, project, on_progress=show)
        except errors.Corrupt as exc:  # It keeps everything of this project; erasures go on all the same.
            plan, problem = sweep.Plan(project, clock.now_iso()), exc.message
        swept = len(plan.victims)
        entries = [entry.body for entry in due]
        if not dry_run and (due or past or swept):
            given = {"keep_days": keep_days, "erasures": len(due), "past": len(past)}
            async with ui.acting(opened, "upkeep", projects=[project], reason=why, arguments=given) as act:
                for first in range(0, len(past), retention.BATCH):
                    some = retention.targets(past[first : first + retention.BATCH])
                    due.append(await one.begin_retention(some, days=keep_days or 0))
                entries = [(await one.carry_on(str(entry.body["id"]))).body for entry in due]
                swept = await sweep.delete(opened.store, plan, per_second=per_second, on_progress=show)
                act.result |= {"erasures": len(entries), "swept": swept}
    shown = [{name: body[name] for name in ("id", "scope", "name", "state")} for body in entries]
    told = {"project": project, "erasures": shown, "past": len(past), "swept": swept, "problem": problem}
    return told | ({"rollouts": [asdict(one) for one in past[:LISTED_MAX]]} if dry_run else {})
