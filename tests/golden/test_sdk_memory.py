"""The real SDK reads the trees that we render, unchanged.

Method: records (the samples, and the recorded conversations) go through the rules model into notes and files;
the files are written into a real UnixLocal workspace; then the SDK's own `Memory()` builds its instructions
from it, and its own storage class makes the selection and `raw_memories.md` anew, which must be ours.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from runlore import sources
from runlore.events import ids, models, records
from runlore.memory import notes as _notes
from runlore.memory import operations, render, rules, values

# The SDK and its own dependencies may warn about each other; only our warnings are errors here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import RunConfig, Runner  # noqa: E402
from agents.sandbox import (  # noqa: E402
    Manifest,
    MemoryLayoutConfig,
    MemoryReadConfig,
    SandboxAgent,
    SandboxRunConfig,
)
from agents.sandbox.capabilities import Filesystem, Memory, Shell  # noqa: E402
from agents.sandbox.memory import prompts  # noqa: E402
from agents.sandbox.memory.storage import SandboxMemoryStorage  # noqa: E402
from agents.sandbox.sandboxes import UnixLocalSandboxClient  # noqa: E402
from agents.testing import ScriptedModel, assistant_message  # noqa: E402

SELECTED_MAX = 256


def remembered(runs):
    """The notes after `runs` (their event data), as the stages make them."""
    digests: dict[str, list] = {}
    for data in runs:
        run = models.run_completed(data)
        line = records.to_ascii(run.record)
        meta = values.RunMeta(
            project=run.project,
            memory=run.memory,
            rollout=run.rollout.alias,
            run=ids.alias(run.run_id),
            attempt=run.attempt,
            subject=ids.subject_alias(run.subject) if run.subject else None,
            ended_at=records.check(line).get("updated_at", values.UNKNOWN),
            agents=run.agents,
        )
        digests.setdefault(run.rollout.alias, []).append(rules.digest(line, meta))
    notes = _notes.Notes()
    for rollout, found in digests.items():
        notes, refused = operations.apply(notes, operations.propose(notes, rollout, rules.build(found)))
        assert refused == []
    return notes


def sample_runs(root):
    paths = sorted((root / "examples" / "runs").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text("ascii").splitlines()]


def recorded_runs(folder):
    out = []
    for form, name in (("chat", "tau-bench"), ("swe-agent", "swe-agent")):
        out += [one.data for one in sources.read(form, folder / name, project="demo", memory="support")]
    return out


def tree(runs, layout, subject=None, rollout=None):
    """A seed's files below `memories_dir`, as bytes."""
    pieces = render.parts(remembered(runs), layout)
    alias = ids.subject_alias(subject) if subject else None
    files = render.compose(pieces, subject=alias, rollout=rollout, layout=layout)
    return {path: one.text.encode("utf-8") for path, one in files.items()}


@contextlib.asynccontextmanager
async def workspace(files, layout):
    """A real sandbox whose workspace holds `files` as memory."""
    client = UnixLocalSandboxClient()
    session = await client.create(manifest=Manifest())
    await session.start()
    try:
        for path, content in files.items():
            target = Path(layout.memories_dir, path)
            await session.mkdir(target.parent, parents=True)
            await session.write(target, io.BytesIO(content))
        yield session
    finally:
        await session.stop()
        await client.delete(session)


def storage(session, layout):
    config = MemoryLayoutConfig(memories_dir=layout.memories_dir, sessions_dir=layout.sessions_dir)
    return SandboxMemoryStorage(session=session, layout=config)


async def read_by_the_sdk(files, layout):
    """What the SDK makes of the tree: its selection, what it reads of the prior one, and `raw_memories.md`."""
    async with workspace(files, layout) as session:
        sdk = storage(session, layout)
        chosen = await sdk.build_phase_two_input_selection(max_raw_memories_for_consolidation=SELECTED_MAX)
        prior = await sdk.read_phase_two_selection()
        rebuilt = await sdk.rebuild_raw_memories(selected_items=chosen.selected)
        raw = await sdk.read_text(sdk.memories_dir / "raw_memories.md") if rebuilt else None
        await sdk.write_phase_two_selection(selected_items=chosen.selected)
        selection = await sdk.read_text(sdk.phase_two_selection_path)
    return chosen, prior, raw, json.loads(selection)


async def check_that_the_sdk_agrees(files, layout):
    chosen, prior, raw, selection = await read_by_the_sdk(files, layout)
    assert chosen.selected and chosen.selected == prior and chosen.removed == []
    assert chosen.retained_rollout_ids == {one.rollout_id for one in chosen.selected}
    assert raw == files["raw_memories.md"].decode("utf-8")
    ours = json.loads(files["phase_two_selection.json"])
    del selection["updated_at"], ours["updated_at"]
    assert ours == selection
    for one in chosen.selected:
        assert f"raw_memories/{one.rollout_id}.md" in files and one.rollout_summary_file in files
        assert one.rollout_path == f"{layout.sessions_dir}/{one.rollout_id}.jsonl"
        assert one.terminal_state and one.updated_at
    return chosen.selected


async def injected(files, layout, memory):
    """The instructions that a model is given when an agent with `memory` starts in this workspace."""
    model = ScriptedModel([[assistant_message("ok")]])
    agent = SandboxAgent(
        name="Next", model=model, instructions="Help.", capabilities=[Shell(), Filesystem(), memory]
    )
    async with workspace(files, layout) as session:
        config = RunConfig(sandbox=SandboxRunConfig(session=session), tracing_disabled=True)
        await Runner.run(agent, "hello", run_config=config)
    return model.first_call.system_instructions


LAYOUTS = [models.Layout(), models.Layout(memories_dir="agent/memories", sessions_dir="agent/sessions")]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["default", "own"])


@layouts
@pytest.mark.parametrize("subject", [None, "ana", "ben"])
async def test_the_sdk_s_storage_reads_the_samples_tree_as_its_own(root, layout, subject):
    runs = sample_runs(root)
    selected = await check_that_the_sdk_agrees(tree(runs, layout, subject), layout)
    # A rollout is shown to whom it was for; one for nobody in particular to everybody.
    shown = {data["session_id"] for data in runs if data.get("subject") in (None, subject)}
    assert {one.rollout_id for one in selected} == shown


@layouts
@pytest.mark.parametrize("live_update", [True, False])
async def test_the_sdk_s_memory_injects_exactly_the_seeded_summary(root, layout, live_update):
    files = tree(sample_runs(root), layout, "ana", "report-7")
    summary = files["memory_summary.md"].decode("utf-8")
    config = MemoryLayoutConfig(memories_dir=layout.memories_dir, sessions_dir=layout.sessions_dir)
    memory = Memory(layout=config, read=MemoryReadConfig(live_update=live_update), generate=None)
    told = await injected(files, layout, memory)
    wanted = prompts.render_memory_read_prompt(
        memory_dir=layout.memories_dir, memory_summary=summary.strip(), live_update=live_update
    )
    assert wanted in told and summary.strip() in told and "tokens truncated" not in told


async def test_without_a_summary_the_sdk_injects_nothing(root):
    files = tree(sample_runs(root), LAYOUTS[0])
    files["memory_summary.md"] = b"\n"
    told = await injected(files, LAYOUTS[0], Memory(generate=None))
    assert "memory_summary" not in told


@pytest.mark.parametrize("folder", ["tau-bench", "swe-agent"])
@pytest.mark.data
async def test_the_sdk_s_storage_reads_the_tree_of_recorded_runs_as_its_own(recorded, folder):
    form = {"tau-bench": "chat", "swe-agent": "swe-agent"}[folder]
    read = sources.read(form, recorded / folder, project="demo", memory="support")
    runs = [one.data for one in read]
    subject = runs[0].get("subject")
    selected = await check_that_the_sdk_agrees(tree(runs, LAYOUTS[0], subject), LAYOUTS[0])
    # Rollouts of other subjects are in nobody else's seed, so only what is this subject's is selected.
    rollouts = {models.run_completed(data).rollout.alias for data in runs if data.get("subject") == subject}
    assert {one.rollout_id for one in selected} == rollouts


async def test_a_rollout_id_that_is_not_file_safe_is_read_by_its_alias(root):
    runs = [data | {"session_id": f"user:{data['session_id']}@x"} for data in sample_runs(root)]
    selected = await check_that_the_sdk_agrees(tree(runs, LAYOUTS[0], "ben"), LAYOUTS[0])
    assert all(one.rollout_id.startswith(ids.ALIAS_PREFIX) for one in selected)
