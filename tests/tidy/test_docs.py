"""The docs say what the code does: commands, settings, errors and limits are compared with it."""

from __future__ import annotations

import json
import re

import pytest
import reference

from runlore.bus import sqlite
from runlore.commit import packs
from runlore.consumers import consolidate, summarize
from runlore.events import envelope, models
from runlore.lookup import seeds
from runlore.settings import Settings

DOCS = {
    name: (reference.ROOT / name).read_text("utf-8")
    for name in (
        "README.md",
        "docs/CLI.md",
        "docs/CONSOLE.md",
        "docs/DESIGN.md",
        "docs/ADMIN.md",
        "docs/AGENTS.md",
        "docs/HTTP.md",
        "docs/MCP.md",
        "docs/OPERATIONS.md",
        "docs/SOURCES.md",
        "examples/any-agent/README.md",
    )
}


@pytest.mark.parametrize(("file", "name"), reference.PARTS, ids=[" ".join(one) for one in reference.PARTS])
def test_the_generated_part_is_current(file, name):
    text = (reference.ROOT / file).read_text("utf-8")
    current = reference.replaced(text, name, reference.PARTS[file, name]())
    assert text == current, "run: python tests/tidy/reference.py"


def test_the_chart_takes_the_settings_that_there_are():
    assert reference.CHART_SCHEMA.read_text("utf-8") == reference.chart_schema(), (
        "run: python tests/tidy/reference.py"
    )


def test_every_command_and_option_is_in_the_reference():
    for words, command in reference.commands().items():
        part = DOCS["docs/CLI.md"].split(f"### runlore {' '.join(words)}\n")[1].split("\n### ")[0]
        for one in command.params:
            if one.name != "help":
                assert all(f"`{name}`" in part for name in one.opts if name.startswith("-")), (
                    words,
                    one.name,
                )


def test_every_command_has_its_json_object_in_the_docs():
    table = DOCS["docs/CLI.md"].split("## JSON objects")[1].split("\n## ")[0]
    described = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`([a-z -]+)`", row.split("|")[1] if "|" in row else "")
    }
    assert {" ".join(words) for words in reference.commands()} == described


def test_every_exit_code_of_an_error_is_documented():
    table = DOCS["docs/CLI.md"].split("## Exit codes")[1].split("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert {one.exit_code for _, one in reference.every_error().values()} | {0, 130} == documented


def test_kinds_of_errors_are_unique_and_documented_by_their_own_words():
    kinds = {}
    for kind, (_, one) in reference.every_error().items():
        assert re.fullmatch(r"[a-z_]+", kind) and (one.__doc__ or "").strip()
        kinds[kind] = one
    subclasses = set()

    def walk(one):
        for child in one.__subclasses__():
            if child.__module__.startswith("runlore.") and "testing" not in child.__module__:
                subclasses.add(child)
                walk(child)

    walk(kinds["internal"])
    assert len({one.kind for one in subclasses}) == len(subclasses), "two errors share a kind"


def test_the_readme_names_every_command():
    table = DOCS["README.md"].split("## Commands")[1].split("\n## ")[0]
    named = set(re.findall(r"[a-z]+", " ".join(re.findall(r"^\| (.+?) \| [^|]+ \|$", table, re.M))))
    assert {words[0] for words in reference.commands()} <= named


def test_the_layout_in_the_design_has_every_folder():
    part = DOCS["docs/DESIGN.md"].split("## Layout")[1].split("\n## ")[0]
    named = {one for row in re.findall(r"^\| (`.+?) \|", part, re.M) for one in re.findall(r"`(\w+)/`", row)}
    package = reference.ROOT / "services" / "runlore"
    assert named == {path.parent.name for path in package.glob("*/__init__.py")}


def test_every_route_of_the_service_is_in_its_contract():
    text = "\n".join((reference.ROOT / f"docs/{name}.md").read_text("utf-8") for name in ("HTTP", "ADMIN"))
    shown = {
        (method, one)
        for row in text.splitlines()
        if row.startswith("| `")
        for method, one in re.findall(r"`(GET|POST|PUT|DELETE) ([^` ?]+)[^`]*`", row.split(" | ")[0])
    }
    published = json.loads((reference.ROOT / "schemas/openapi.json").read_text("utf-8"))["paths"]
    routes = {
        (method.upper(), path.replace("/v1/projects/{project}", "…"))
        for path, operations in published.items()
        for method in operations
    }
    assert shown == routes


@pytest.mark.parametrize(
    ("beginning", "shapes"),
    [
        ('{"seed": "s1.…" | null,', ("Seed", "File", "Base", "Layout")),
        ('{"memory": "support", "conversation_id"', ("io.runlore.memory.edited.v1", "EditedFile")),
    ],
)
def test_an_object_that_the_service_shows_has_the_fields_of_its_contract(beginning, shapes):
    shown = beginning + DOCS["docs/HTTP.md"].split(beginning)[1].split("\n\n")[0]
    contracts = [
        json.loads((reference.ROOT / f"schemas/{one}.json").read_text("utf-8"))
        for one in ("openapi", "asyncapi")
    ]
    known = {name: one for contract in contracts for name, one in contract["components"]["schemas"].items()}
    event = known["io.runlore.memory.edited.v1"]
    known |= event.get("$defs", {})
    fields = {field for shape in shapes for field in known[shape]["properties"]}
    named = set(re.findall(r'"(\w+)":', shown))
    assert named <= fields
    if shapes[0] == "Seed":
        assert set(known["Seed"]["properties"]) <= named


def test_a_setting_is_named_nowhere_that_does_not_exist():
    names = {f"RUNLORE_{name.upper()}" for name in Settings.model_fields}
    for path in [*(reference.ROOT / "docs").rglob("*.md"), reference.ROOT / "README.md"]:
        for found in re.findall(r"RUNLORE_[A-Z0-9_]+", path.read_text("utf-8")):
            assert found in names or found.startswith("RUNLORE_TEST_"), f"{path.name}: {found}"


def test_the_bounds_in_the_design_are_those_of_the_code():
    table = DOCS["docs/DESIGN.md"].split("## What bounds what")[1]
    rows = {
        row.split("|")[1].strip(): row.split("|")[2] for row in table.splitlines() if row.startswith("| ")
    }

    def bound(name):
        return next(text for row, text in rows.items() if name in row)

    assert f"{models.RECORD_BYTES_MAX // 2**20} MiB" in bound("a record")
    assert f"{models.RECORD_INLINE_BYTES_MAX // 1024} KiB" in bound("a record")
    assert f"{envelope.EVENT_BYTES_MAX // 2**20} MiB" in bound("an event on the bus")
    assert f"{Settings.model_fields['poll_records_max'].default} " in bound("a poll")
    assert str(consolidate.ROLLOUTS_PER_REVISION_MAX) in bound("takes in")
    assert str(consolidate.ROLLOUTS_SELECTED_MAX) in bound("have notes")
    assert str(packs.PACKS_MAX) in bound("packs that one manifest")
    assert str(summarize.RESTARTS_MAX) in bound("restarts")
    assert f"{consolidate.HELD_MAX:,}" in bound("held in one memory")
    assert f"{seeds.TERM_HOURS} hours" in bound("a seed's term")
    assert sqlite.PARTITIONS == 8


def anchors(text):
    """What the headings of a page can be linked by."""
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_link_of_a_readme_leads_to_a_file_and_a_heading_that_exist():
    folders = (
        reference.ROOT / name for name in (".", "examples/agents", "examples/any-agent", "clients/typescript")
    )
    for page in (folder / "README.md" for folder in folders):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                file, _, anchor = target.partition("#")
                there = page.parent / file
                assert there.exists(), f"{page} links to {target}"
                assert not anchor or anchor in anchors(there.read_text("utf-8")), f"{page} links to {target}"


def test_whatever_mentions_a_page_of_the_docs_mentions_one_that_exists():
    kinds = {".py", ".md", ".tf", ".yml", ".yaml", ".sh", ".ts", ".toml", ".html"}
    for folder in ("benchmarks", "clients", "docs", "examples", "infra", "schemas", "services"):
        for path in (reference.ROOT / folder).rglob("*"):
            if path.suffix in kinds and not {"node_modules", ".cache"} & set(path.parts) and path.is_file():
                for page in re.findall(r"(?<![\w./-])docs/[\w/-]+\.md", path.read_text("utf-8")):
                    assert (reference.ROOT / page).is_file(), f"{path} mentions {page}"
