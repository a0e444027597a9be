"""Commands about side lines: `rebuild` builds, lists and drops them, `promote` makes one the memory's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.consumers.rebuild import Built, Progress
    from runlore.models import choices
    from runlore.wiring import Home

START = "start"


class _OrStart(typer.core.TyperGroup):
    """`runlore rebuild MEMORY …` is `runlore rebuild start MEMORY …`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0] in ("-h", "--help")
        return super().resolve_command(ctx, args if known else [START, *args])


rebuild_app = typer.Typer(
    cls=_OrStart,
    help="Side lines: a memory made anew from its recorded runs, beside its own line.",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The side line.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.add_typer(rebuild_app, name="rebuild")
    app.command()(promote)


@rebuild_app.callback(invoke_without_command=True)
def _rebuild(ctx: typer.Context, home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """Side lines: a memory made anew from its recorded runs, beside its own line. Without a command: list them."""
    if ctx.invoked_subcommand is None:
        rebuild_list(home=home, as_json=as_json)
    else:
        # Options that stand before the command count for it.
        given = {"home": home, "as_json": as_json or None}
        known = {name: value for name, value in given.items() if value is not None}
        ctx.default_map = {str(ctx.invoked_subcommand): known}


@rebuild_app.command(name=START)
def rebuild_start(
    name: ui.MemoryArgument = "",
    side: Annotated[
        str, typer.Option("--as", metavar="NAME", help="What the side line is called.", show_default=False)
    ] = "",
    rules: Annotated[bool, typer.Option("--rules", help="By the present rules alone: no model.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The model (default: the one that this memory has).", show_default=False
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option("--effort", help="How much it may reason; '' sends none.", show_default=False),
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option("--prompt", help="A file in place of the prompt for summaries.", show_default=False),
    ] = None,
    extra_prompt: Annotated[
        Path | None,
        typer.Option("--extra-prompt", help="A file that is added behind the prompt.", show_default=False),
    ] = None,
    limit_usd: Annotated[
        float | None,
        typer.Option("--limit-usd", min=0.0, help="What this call may cost at most.", show_default=False),
    ] = None,
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make a memory anew from its recorded runs beside its own line: by another model or prompt, or the present rules.

    Nothing of the memory moves, and nobody's seed changes. Interrupted, the same command goes on, and pays for no
    answer twice; later it takes in what came since. `runlore diff MEMORY main NAME` compares, `runlore promote`
    takes it over.

    `start` may be left out.

    Example: runlore rebuild start support --project acme --as luna --model gpt-5.4 --reason "a better model?"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring

        changed = _changed(model, effort, prompt, extra_prompt)
        if rules and (changed or limit_usd is not None):
            raise _usage("--rules asks no model: leave --model, --effort, --prompt and --limit-usd out")
        meant = await _meant(out, home, project, memory or name or None, "runlore rebuild MEMORY --as NAME")
        if not side:
            raise _usage("say what the side line is called: --as NAME")
        async with wiring.open_home(ui.settings_of(home)) as opened:
            setup = await _setup(opened, meant, side, changed, rules)
            why, asked = ui.needs_reason(reason), (setup["model"] or {}).get("model")
            arguments = {"memory": meant[1], "side": side, "model": asked, "limit_usd": limit_usd}
            async with ui.acting(
                opened, "rebuild", projects=meant[:1], reason=why, arguments=arguments
            ) as act:
                built = await _build(out, opened, meant, side, setup, why, limit_usd)
                act.result |= {"revision": built.revision, "cost_usd": built.progress.cost_usd}
        _report(out, meant, side, built)

    ui.run(work, as_json=as_json)


def _usage(message: str) -> Exception:
    from runlore import errors

    return errors.InvalidInput(message, hint="`runlore rebuild --help` shows the usage")


def _changed(
    model: str | None, effort: str | None, prompt: Path | None, extra_prompt: Path | None
) -> dict[str, str]:
    """What is said here of how the model is asked. Raises `errors.InvalidInput`."""
    given = {"model": model, "effort": effort, "prompt": _text(prompt), "extra_prompt": _text(extra_prompt)}
    return {what: value for what, value in given.items() if value is not None}


def _text(path: Path | None) -> str | None:
    """What a file of a prompt says. Raises `errors.InvalidInput`."""
    from runlore.consumers import rebuild

    if path is None:
        return None
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise _usage(
            f"{path} can not be read: {getattr(exc, 'strerror', None) or 'it is not UTF-8'}"
        ) from None
    if not text.strip() or len(text) > rebuild.PROMPT_CHARS_MAX:
        raise _usage(f"{path} has {len(text)} characters; a prompt has 1 to {rebuild.PROMPT_CHARS_MAX}")
    return text


async def _meant(
    out: ui.Out, home: Path | None, project: str | None, memory: str | None, usage: str
) -> tuple[str, str]:
    from runlore.cli import inspect

    async with inspect._open(home) as (_, index):
        return inspect._meant(out, index, project, memory, usage)


async def _setup(
    opened: Home, meant: tuple[str, str], side: str, changed: dict[str, str], rules: bool
) -> dict[str, Any]:
    """What the side is built with: what is said here; else what it was begun with; else what this memory has."""
    from runlore.commit import sides
    from runlore.consumers import rebuild
    from runlore.models import choices, port

    head = await sides.read(opened.store, *meant, side)
    if rules:
        return rebuild.setup_of(None)
    begun: choices.Choice | None = None
    if sides.stands(head.body):
        begun = rebuild.choice_of(head.body["setup"])
        if begun is None and not changed:
            return rebuild.setup_of(None)
    base = begun or choices.load(opened.settings.models_file).of(*meant, port.SUMMARIZE)
    return rebuild.setup_of(choices.Choice.model_validate(base.model_dump() | changed))


async def _build(
    out: ui.Out,
    opened: Home,
    meant: tuple[str, str],
    side: str,
    setup: dict[str, Any],
    reason: str,
    limit_usd: float | None,
) -> Built:
    from runlore import wiring
    from runlore.consumers import rebuild
    from runlore.models import choices
    from runlore.worker import concurrency

    said = choices.load(opened.settings.models_file)
    _check_limit(said, setup, limit_usd)
    engine = wiring.engine_of(opened.settings) if setup["model"] else None
    with out.progress() as bar:
        task = bar.add_task("rebuild", total=None, detail="")

        def told(progress: Progress) -> None:
            bar.update(task, total=progress.runs_total, completed=progress.runs, detail=_detail(progress))

        try:
            line = rebuild.Rebuild(
                opened.store,
                opened.bus,
                *meant,
                side,
                reader=opened.reader,
                runtime=concurrency.runtime(opened.settings.lanes),
                on_progress=told,
            )
            return await line.build(setup, reason=reason, engine=engine, said=said, limit_usd=limit_usd)
        finally:
            if engine is not None:
                await engine.close()


def _check_limit(said: choices.Choices, setup: dict[str, Any], limit_usd: float | None) -> None:
    """Raises `errors.SpendLimit` where nobody could say what an answer costs."""
    from runlore import errors
    from runlore.models import port

    if limit_usd is None or not setup["model"]:
        return
    model, usage = setup["model"], port.Usage(input_tokens=1, output_tokens=1)
    if said.table().cost_usd(model["model"], tier=model["tier"], usage=usage) is None:
        raise errors.SpendLimit(
            f"{model['model']} has no price: no limit in dollars can be kept",
            hint="give it one under [prices] in the file of models, or leave --limit-usd out",
        )


def _detail(progress: Progress) -> str:
    if not progress.asks:
        return f"{progress.rollouts} of {progress.rollouts_total} rollouts"
    tokens = f"{progress.input_tokens:,} tokens in, {progress.output_tokens:,} out"
    return f"{tokens}, {_cost(progress.cost_usd, progress.unknown)}"


def _cost(usd: float, unknown: int) -> str:
    return f"${usd:.4f}" + (f" and {unknown} answers of unknown cost" if unknown else "")


def _report(out: ui.Out, meant: tuple[str, str], side: str, built: Built) -> None:
    done = built.progress
    out.answer(
        {
            "project": meant[0],
            "memory": meant[1],
            "side": side,
            "revision": built.revision,
            "rollouts": done.rollouts,
            "runs": done.runs,
            "asks": done.asks,
            "input_tokens": done.input_tokens,
            "output_tokens": done.output_tokens,
            "cost_usd": done.cost_usd,
            "cost_unknown": done.unknown,
            "held": list(built.held),
            "left_out": list(built.left_out),
        }
    )
    out.say(f"side line {side} of {'/'.join(meant)}: revision {built.revision}")
    out.say(
        f"  took in {done.runs} runs of {done.rollouts} rollouts"
        + (f" · {_detail(done)}" if done.asks else "")
    )
    if built.held:
        out.say(f"  a guard refused {len(built.held)} rollouts: {', '.join(built.held[:5])}")
    if built.left_out:
        out.say(f"  {len(built.left_out)} rollouts are held for review in the memory, and left out")
    out.note(f"next: runlore diff {meant[1]} main {side} · runlore promote {meant[1]} {side} --reason …")


@rebuild_app.command(name="list")
def rebuild_list(
    name: ui.MemoryArgument = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List the side lines of a memory: what each is made with, how far it is, and what it cost.

    Example: runlore rebuild list support --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.commit import sides

        meant = await _meant(out, home, project, memory or name or None, "runlore rebuild list MEMORY")
        async with wiring.open_home(ui.settings_of(home)) as opened:
            found = await sides.of_memory(opened.store, *meant)
        rows = [_row(head.body) for head in found]
        out.answer({"project": meant[0], "memory": meant[1], "sides": rows})
        if not rows:
            out.say(f"{'/'.join(meant)} has no side lines")
            return
        columns = (
            "side",
            "state",
            "revision",
            "model",
            "effort",
            "answers",
            "cost_usd",
            "held",
            "began_at",
            "reason",
        )
        out.table(columns, [[row[column] for column in columns] for row in rows])

    ui.run(work, as_json=as_json)


def _row(body: dict[str, Any]) -> dict[str, Any]:
    said, spent = body["setup"]["model"] or {}, body["spent"]
    return {
        "side": body["side"],
        "state": body["state"],
        "revision": body["revision"] or 0,
        "model": said.get("model"),
        "effort": said.get("effort"),
        "has_own_prompt": bool(said.get("prompt") or said.get("extra_prompt")),
        "answers": spent["answers"],
        "input_tokens": spent["input_tokens"],
        "output_tokens": spent["output_tokens"],
        "cost_usd": spent["cost_usd"],
        "cost_unknown": spent["unknown"],
        "held": len(body["held"]),
        "began_at": body["began_at"],
        "reason": body["reason"],
    }


@rebuild_app.command(name="drop")
def rebuild_drop(
    name: ui.MemoryArgument = "",
    side: NameArgument = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Let a side line go: seeds that are pinned to it stay good for their term, then `runlore sweep` takes its objects.

    Example: runlore rebuild drop support luna --project acme --reason "worse than what we have"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.commit import sides

        meant, named = await _named(
            out, home, project, (memory, name, side), "runlore rebuild drop MEMORY NAME"
        )
        why = ui.needs_reason(reason)
        async with wiring.open_home(ui.settings_of(home)) as opened:
            await sides.existing(opened.store, *meant, named)
            arguments = {"memory": meant[1], "side": named}
            async with ui.acting(opened, "rebuild drop", projects=meant[:1], reason=why, arguments=arguments):
                await sides.drop(opened.store, *meant, named, reason=why)
        out.answer({"project": meant[0], "memory": meant[1], "side": named, "dropped": True})
        out.say(f"side line {named} of {'/'.join(meant)} is dropped; what it was asked stays kept")

    ui.run(work, as_json=as_json)


async def _named(
    out: ui.Out, home: Path | None, project: str | None, given: tuple[str | None, str, str], usage: str
) -> tuple[tuple[str, str], str]:
    """The memory and the side line: `MEMORY NAME`, or `--memory MEMORY NAME`."""
    memory, first, second = given
    if memory and first and not second:
        first, second = "", first
    meant = await _meant(out, home, project, memory or first or None, usage)
    if not second:
        raise _usage(f"say which side line: {usage}")
    return meant, second


def promote(
    name: ui.MemoryArgument = "",
    side: NameArgument = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make a side line's notes the memory's next revision. `runlore revert` takes it back.

    No run is lost: what the memory took in since the side was built is taken in with it, and what is held for review
    stays held. A rollout's next run brings again what the memory's own model says of it: set that model too, if the
    side's is to stay.

    Example: runlore promote support luna --project acme --reason "better on all counts"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.consumers import promote as promoting

        meant, named = await _named(out, home, project, (memory, name, side), "runlore promote MEMORY NAME")
        why = ui.needs_reason(reason)
        arguments = {"memory": meant[1], "side": named}
        async with (
            wiring.open_home(ui.settings_of(home)) as opened,
            ui.acting(opened, "promote", projects=meant[:1], reason=why, arguments=arguments) as act,
        ):
            joins = opened.settings.has_model
            done = await promoting.promote(
                opened.store, opened.bus, opened.reader, *meant, named, reason=why, joins=joins
            )
            act.result |= {"revision": done.revision, "held": list(done.held)}
        out.answer(
            {
                "project": meant[0],
                "memory": meant[1],
                "side": named,
                "side_revision": done.side_revision,
                "revision": done.revision,
                "taken_in": list(done.taken_in),
                "held": list(done.held),
            }
        )
        out.say(
            f"revision {done.revision} of {'/'.join(meant)} has the notes of {named}@{done.side_revision}"
        )
        if done.taken_in:
            out.say(f"  with what came since: {len(done.taken_in)} rollouts")
        if done.held:
            out.say(f"  a guard refused {len(done.held)} rollouts, which are held (`runlore review`)")

    ui.run(work, as_json=as_json)
