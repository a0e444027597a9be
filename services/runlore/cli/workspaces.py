"""The rest of `runlore snapshot`: what changes lines or writes files; and `runlore sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui
from runlore.cli.snapshots import (
    AgentOption,
    IdArgument,
    ProjectOption,
    RolloutOption,
    _bar,
    _opened,
)

if TYPE_CHECKING:
    from runlore.wiring import Home


def register(root: typer.Typer, app: typer.Typer) -> None:
    for command in (restore, export, merge, tag, drop, retain, verify, stats):
        app.command()(command)
    root.command()(sweep)


def restore(
    id: IdArgument = "",
    project: ProjectOption = "",
    into: Annotated[
        Path | None, typer.Option("--into", help="A new or empty folder.", show_default=False)
    ] = None,
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")] = False,
    inside: Annotated[bool, typer.Option("--inside", help="Leave out links that lead elsewhere.")] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Write a snapshot to a folder: whole, or not at all.

    Example: runlore snapshot restore conv-7 --project acme --into ./workspace
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import errors
        from runlore.lookup import workspaces

        async with _opened(out, home, project, id, "runlore snapshot restore ID --into DIR") as (
            opened,
            made,
        ):
            if into is None:
                raise errors.InvalidInput("--into is needed", hint="the folder to write into")
            found, line, base = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            bar, show = _bar(out, "restore")
            with bar:
                done = await made.restore(
                    found.ref, into, replace=force, links="inside" if inside else "keep", progress=show
                )
            # A folder from which links were left out is not the whole base: saved again, it would drop them.
            if line is not None and base is not None and not done.skipped:
                await asyncio.to_thread(workspaces.remember, opened.settings.cache_dir, into, line, base)
        skipped = [{"path": path, "why": why} for path, why in done.skipped]
        answer = {"snapshot": found.ref.id, "into": str(into), "stats": done.stats, "skipped": skipped}
        out.answer({**answer, "report": done.report})
        out.say(f"restored {found.ref.id[:12]} into {into}: {done.stats['files']:,} files")
        for one in skipped:
            out.note(f"left out {one['path']}: {one['why']}")

    ui.run(work, as_json=as_json)


def export(
    id: IdArgument = "",
    to: Annotated[
        str, typer.Option("--out", "-o", help="The tar to write; '-' is stdout.", show_default=False)
    ] = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Write a snapshot as a tar that the Agents SDK restores; the same bytes for one id, always.

    Example: runlore snapshot export conv-7 --project acme --out workspace.tar
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import errors
        from runlore.lookup import workspaces

        async with _opened(out, home, project, id, "runlore snapshot export ID --out FILE") as (_, made):
            if not to or (to == "-" and as_json):
                raise errors.InvalidInput("--out FILE is needed", hint="'-' is stdout, without --json")
            found, _, _ = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            archive = await made.export(found.ref)
            try:
                size = await asyncio.to_thread(_copy, archive, to)
                left_out = [{"path": path, "why": why} for path, why in getattr(archive, "left_out", ())]
            finally:
                archive.close()
        out.answer({"snapshot": found.ref.id, "out": to, "bytes": size, "left_out": left_out})
        out.note(f"wrote {size:,} bytes to {to}")
        for one in left_out:
            out.note(f"left out {one['path']}: {one['why']}")

    ui.run(work, as_json=as_json)


def _copy(archive: Any, to: str) -> int:
    import os
    import shutil

    if to == "-":
        shutil.copyfileobj(archive, sys.stdout.buffer, 1 << 20)
        return int(archive.tell())
    temporary = f"{to}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(archive, file, 1 << 20)
            size = file.tell()
        os.replace(temporary, to)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return size


def merge(
    id: Annotated[
        str,
        typer.Argument(metavar="ROLLOUT", help="The rollout whose branches to merge.", show_default=False),
    ] = "",
    branches: Annotated[
        list[str] | None, typer.Option("--branch", "-b", help="Only this branch; may be given again.")
    ] = None,
    project: ProjectOption = "",
    agent: AgentOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would come out; write nothing.")
    ] = False,
    reason: ui.MaybeReason = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Merge a rollout's branches into its version: by file, text by line; conflicts are kept side by side.

    Example: runlore snapshot merge conv-7 --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore.commit import lines
        from runlore.lookup import merging

        async with _opened(out, home, project, id, "runlore snapshot merge ROLLOUT") as (opened, made):
            line = lines.line_of(project, id, agent)
            if dry_run:
                done = await merging.merge_branches(made, line, branches or None, dry_run=True)
            else:
                arguments = {"line": str(line), "branches": branches}
                async with ui.acting(
                    opened, "snapshot merge", projects=[project], reason=reason, arguments=arguments
                ) as act:
                    done = await merging.merge_branches(made, line, branches or None)
                    act.result |= {"state": done.state, "snapshot": done.saved.id if done.saved else None}
        told = merging.told(done, line, dry_run=dry_run)
        out.answer(told)
        conflicts, snapshot = told["conflicts"], told["snapshot"]
        count = len(conflicts)
        out.say(
            f"merged {len(done.branches)} branches · {done.merged.record.files:,} files · "
            f"{count} {'conflict' if count == 1 else 'conflicts'}"
            + (" (dry run)" if dry_run else f" · {snapshot[:12]}")
        )
        for one in conflicts:
            kept = ", ".join(f"{label}: {path or 'deleted'}" for label, path in one["kept"].items())
            out.say(f"  {one['path']}: {one['kind']}" + (f" ({kept})" if kept else ""))

    ui.run(work, as_json=as_json)


def tag(
    id: IdArgument = "",
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tag.", show_default=False)] = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the tag away (ID is its rollout).")] = False,
    reason: ui.MaybeReason = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Give a snapshot a name that keeps it whatever retention says; or take the name away.

    Example: runlore snapshot tag conv-7 before-upgrade --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.commit import lines
        from runlore.lookup import workspaces

        async with _opened(out, home, project, id and name, "runlore snapshot tag ID NAME") as (opened, made):
            if delete:
                line = lines.line_of(project, rollout or id, agent)
                why = ui.needs_reason(reason)
                given = {"line": str(line), "tag": name}
                async with ui.acting(
                    opened, "snapshot tag --delete", projects=[project], reason=why, arguments=given
                ):
                    head = await lines.untag(opened.store, line, name)
                out.answer({"snapshot": None, "tags": head.body["tags"]})
                out.say(f"{line} has no tag {name} any more")
                return
            found, line, _ = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            if line is None:
                raise errors.NotFound("no head names this snapshot now, so it can not be tagged")
            given = {"line": str(line), "tag": name, "snapshot": found.ref.id}
            async with ui.acting(opened, "snapshot tag", projects=[project], reason=reason, arguments=given):
                head = await lines.tag(opened.store, line, name, str(found.ref))
        out.answer({"snapshot": found.ref.id, "tags": head.body["tags"]})
        out.say(f"{name} is {found.ref.id[:12]} of {line}")

    ui.run(work, as_json=as_json)


def drop(
    id: Annotated[str, typer.Argument(metavar="ROLLOUT", help="A rollout.", show_default=False)] = "",
    branch: Annotated[str, typer.Argument(metavar="BRANCH", help="Its branch.", show_default=False)] = "",
    project: ProjectOption = "",
    agent: AgentOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Let a branch go without merging it; it stays restorable by its id for its term.

    Example: runlore snapshot drop conv-7 run-12 --project acme --reason "a failed try"
    """

    async def work(out: ui.Out) -> None:
        from runlore.commit import lines

        async with _opened(out, home, project, id and branch, "runlore snapshot drop ROLLOUT BRANCH") as (
            opened,
            _,
        ):
            line, why = lines.line_of(project, id, agent), ui.needs_reason(reason)
            given = {"line": str(line), "branch": branch}
            async with ui.acting(opened, "snapshot drop", projects=[project], reason=why, arguments=given):
                head = await lines.delete_branch(opened.store, line, branch)
        out.answer({"branch": branch, "branches": sorted(head.body["branches"])})
        out.say(f"branch {branch} is let go; {len(head.body['branches'])} left")

    ui.run(work, as_json=as_json)


def retain(
    id: Annotated[str, typer.Argument(metavar="ROLLOUT", help="A rollout.", show_default=False)] = "",
    project: ProjectOption = "",
    agent: AgentOption = None,
    last: Annotated[
        int | None, typer.Option("--last", min=0, help="Keep the newest so many.", show_default=False)
    ] = None,
    hourly: Annotated[
        int | None,
        typer.Option("--hourly", min=0, help="Keep the newest of so many hours.", show_default=False),
    ] = None,
    daily: Annotated[
        int | None,
        typer.Option("--daily", min=0, help="Keep the newest of so many days.", show_default=False),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0, max=36500, help="Keep what is younger, in days.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be let go; do nothing.")] = False,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Let earlier versions of a workspace go; the present one, branches and tags always stay.

    A version stays if any of the options keeps it. To let all go, say --last 0.

    Example: runlore snapshot retain conv-7 --project acme --last 10 --daily 14 --reason "monthly clean-up"
    """

    async def work(out: ui.Out) -> None:
        import datetime as dt

        from runlore import errors
        from runlore.commit import lines

        async with _opened(out, home, project, id, "runlore snapshot retain ROLLOUT --last N") as (opened, _):
            if all(one is None for one in (last, hourly, daily, days)):
                raise errors.InvalidInput(
                    "say what to keep: --last, --hourly, --daily or --days",
                    hint="--last 0 keeps nothing else",
                )
            within = dt.timedelta(days=days) if days else None
            keep = lines.Keep(last=last or 0, hourly=hourly or 0, daily=daily or 0, within=within)
            line = lines.line_of(project, id, agent)
            if dry_run:
                gone = await lines.retain(opened.store, line, keep, dry_run=True)
            else:
                given = {"line": str(line), "last": last, "hourly": hourly, "daily": daily, "days": days}
                async with ui.acting(
                    opened,
                    "snapshot retain",
                    projects=[project],
                    reason=ui.needs_reason(reason),
                    arguments=given,
                ) as act:
                    gone = await lines.retain(opened.store, line, keep)
                    act.result["let_go"] = gone
        out.answer({"let_go": gone, "dry_run": dry_run})
        out.say(f"{'would let' if dry_run else 'let'} {len(gone)} versions go")

    ui.run(work, as_json=as_json)


def verify(
    id: IdArgument = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Read every byte of a snapshot and hold it against its ids.

    Example: runlore snapshot verify conv-7 --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.lookup import workspaces

        async with _opened(out, home, project, id, "runlore snapshot verify ID") as (_, made):
            found, _, _ = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            bar, show = _bar(out, "verify")
            with bar:
                checked = await made.verify(found.ref, progress=show)
        problems = list(checked.problems)
        count = checked.problems_count
        out.answer(
            {"snapshot": found.ref.id, "ok": not count, "problems": problems, "problems_total": count,
             "blobs": checked.blobs, "bytes": checked.bytes, "packs": checked.packs}
        )  # fmt: skip
        for problem in problems:
            out.say(str(problem))
        if count:
            raise errors.ProblemsFound(f"snapshot {found.ref.id[:12]} has {count} problems")
        out.say(f"snapshot {found.ref.id[:12]} is whole")

    ui.run(work, as_json=as_json)


def stats(
    id: IdArgument = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show how large a snapshot is, and how it lies in packs.

    Example: runlore snapshot stats conv-7 --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore.lookup import workspaces

        async with _opened(out, home, project, id, "runlore snapshot stats ID") as (_, made):
            found, _, _ = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            counted = await made.stats(found.ref)
        out.answer({"snapshot": found.ref.id, "stats": counted})
        for name, value in counted.items():
            out.say(f"{name:<14} {value:,}")

    ui.run(work, as_json=as_json)


# --- sweep ------------------------------------------------------------------------------------------------


def sweep(
    project: ui.MaybeProject = None,
    apply: Annotated[bool, typer.Option("--apply", help="Delete, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --apply: do not ask.")] = False,
    reason: ui.ReasonOption = "",
    per_second: Annotated[
        float, typer.Option("--per-second", min=1, help="Deletes a second, at most.")
    ] = 200,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show what nothing names any more and is older than its term; with --apply, delete it.

    It needs no lock and may run beside everything else. Interrupted, it can simply be run again.

    Example: runlore sweep --apply --reason "nightly"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.commit import sweep as commit_sweep

        async with wiring.open_home(ui.settings_of(home)) as opened:
            plans, broken = [], []
            with out.progress() as bar:
                task = bar.add_task("scan", total=None, detail="")
                show = lambda count, what: bar.update(task, completed=count, detail=what)  # noqa: E731
                for name in [project] if project else await commit_sweep.projects(opened.store):
                    try:
                        plans.append(await commit_sweep.scan(opened.store, name, on_progress=show))
                    except errors.Corrupt as exc:  # It keeps everything of this project, and of no other.
                        broken.append({"project": name, **exc.as_dict()})
            count, size = sum(len(one.victims) for one in plans), sum(one.bytes for one in plans)
            for plan in plans:
                _tell_plan(out, plan)
            deleted = 0
            if apply and count:
                why = ui.needs_reason(reason)
                question = f"Delete {count} objects ({size / 1e6:,.1f} MB)?"
                ui.confirm(out, question, yes=yes, what="this deletes")
                given = {"objects": count, "bytes": size}
                projects = [plan.project for plan in plans if plan.victims]
                async with ui.acting(opened, "sweep", projects=projects, reason=why, arguments=given) as act:
                    deleted = act.result["deleted"] = await _delete(out, opened, plans, per_second)
        rows = [_plan_row(plan) for plan in plans]
        answer = {"projects": rows, "objects": count, "bytes": size, "deleted": deleted, "dry_run": not apply}
        out.answer({**answer, "problems": broken})
        if deleted:
            out.say(f"deleted {deleted} objects")
        elif count and not apply:
            out.note("nothing was deleted: --apply does it")
        for one in broken:
            out.note(f"{one['project']}: {one['message']}")
        if broken:
            raise errors.ProblemsFound(
                f"{len(broken)} projects could not be swept; the others were looked at"
            )

    ui.run(work, as_json=as_json)


async def _delete(out: ui.Out, opened: Home, plans: list[Any], per_second: float) -> int:
    from runlore.commit import sweep as commit_sweep

    deleted = 0
    with out.progress() as bar:
        task = bar.add_task("delete", total=sum(len(plan.victims) for plan in plans), detail="")
        for plan in plans:
            show = lambda count, what, start=deleted: bar.update(task, completed=start + count, detail=what)  # noqa: E731
            deleted += await commit_sweep.delete(opened.store, plan, per_second=per_second, on_progress=show)
    prune = getattr(opened.store, "prune", None)
    if prune is not None:
        await prune()
    return deleted


def _plan_row(plan: Any) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for victim in plan.victims:
        kinds[victim.kind] = kinds.get(victim.kind, 0) + 1
    return {
        "project": plan.project,
        "started_at": plan.started_at,
        "heads": plan.heads,
        "snapshots": plan.snapshots,
        "kept": plan.kept,
        "young": plan.young,
        "objects": len(plan.victims),
        "bytes": plan.bytes,
        "kinds": kinds,
    }


def _tell_plan(out: ui.Out, plan: Any) -> None:
    row = _plan_row(plan)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row["kinds"].items())) or "nothing"
    kept = sum(plan.kept.values())
    out.say(
        f"{plan.project}: {kinds} to delete ({plan.bytes / 1e6:,.1f} MB) · {kept} objects named by {plan.heads} heads"
        f" · {plan.young} too young to judge"
    )
