"""The published contract is current, and says what the models do.

The golden samples stand for every producer and consumer out there: a change that breaks one of them breaks
theirs. A sample is never edited to make this pass; a new shape is a new version of the type.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

from runlore import pipeline
from runlore.events import envelope, ids, models, schemas

TYPES = sorted(models.DATA_BY_TYPE)
types = pytest.mark.parametrize("event_type", TYPES)


def load(root, name):
    return json.loads((root / "schemas" / name).read_text("utf-8"))


def samples(root, event_type):
    return load(root, f"golden/{event_type}.json")["samples"]


def parse(sample):
    headers = [(name, value.encode()) for name, value in sample["headers"].items()]
    return envelope.parse(headers, sample["value"].encode())


def validator(root, event_type):
    schema = load(root, f"{event_type}.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@functools.cache
def made(event_type, name=None):
    """What checks an event, or one field of it, by the schema as it is made now: once for all examples of a test."""
    schema = schemas.event_schema(event_type)
    return jsonschema.Draft202012Validator(schema["properties"][name] if name else schema)


def test_the_published_files_are_what_the_models_say(root):
    assert schemas.stale(root / "schemas") == [], "run: python -m runlore.events.schemas"


def test_writing_makes_a_folder_current_and_a_leftover_or_a_change_is_found(tmp_path):
    schemas.write(tmp_path)
    assert schemas.stale(tmp_path) == [] and schemas.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "io.runlore.gone.v1.json").write_text("{}")
    (tmp_path / schemas.ASYNCAPI).write_text("{}")
    (tmp_path / f"{models.CHANGED}.json").unlink()
    assert len(schemas.stale(tmp_path)) == 3 and schemas.main(["--check", str(tmp_path)]) != 0


@types
def test_every_golden_sample_parses_and_is_written_again_byte_for_byte(root, event_type):
    for sample in samples(root, event_type):
        event = parse(sample)
        assert event.type == event_type
        data = models.parse_data(models.DATA_BY_TYPE[event_type], event.data)
        if "ce_id" not in sample["headers"]:
            continue  # Structured mode is read, never written.
        assert dict(event.headers()) == {name: value.encode() for name, value in sample["headers"].items()}
        assert event.value().decode() == sample["value"]
        if not isinstance(event.data.get("record"), dict):
            assert data.model_dump(exclude_unset=True) == event.data


@types
def test_every_golden_sample_is_valid_by_its_published_schema(root, event_type):
    check = validator(root, event_type)
    for sample in samples(root, event_type):
        check.validate(parse(sample).data)


def test_the_samples_cover_every_field_and_both_ways_to_send_a_record(root):
    for event_type, model in models.DATA_BY_TYPE.items():
        sent = [parse(sample).data for sample in samples(root, event_type)]
        assert set().union(*sent) >= set(model.model_fields)
        assert any(name.startswith("x_") for data in sent for name in data)


def test_a_sample_s_event_id_is_the_one_that_is_derived_today(root):
    for sample in samples(root, models.RUN_COMPLETED):
        event = parse(sample)
        assert envelope.of_run(event.data, source=event.source).id == event.id


@pytest.mark.parametrize(
    "change",
    [
        {"project": None},
        {"project": "../x"},
        {"project": "Acme"},
        {"project": "con"},
        {"project": "rl-x"},
        {"project": "acme\n"},
        {"memory": "a" * 64},
        {"run_id": ""},
        {"run_id": " "},
        {"run_id": "a/../b"},
        {"run_id": "a\n"},
        {"attempt": 0},
        {"record": None},
        {"record": 7},
        {"record_claim": {"sha256": "0" * 64, "size": 1}},
        {"record": None, "record_claim": {"sha256": "x", "size": 1}},
        {"layout": {"memories_dir": "../x"}},
        {"layout": {"memories_dir": "a//b"}},
        {"agents": "Fixer"},
    ],
)
def test_what_the_models_refuse_the_schema_refuses(root, change):
    data = {"project": "acme", "memory": "support", "run_id": "r1", "record": "{}"} | change
    assert not validator(root, models.RUN_COMPLETED).is_valid(data)


texts = st.text(st.characters(codec="utf-8"), max_size=12)
odd_ids = texts | st.sampled_from(["..", "a/..", "a..b", " ", "a\n"])
names = st.from_regex(r"[a-z0-9._-]{1,8}\n?", fullmatch=True)
odd_names = names | st.sampled_from(["con", "rl-a", "nul.x", "a"])
odd_dirs = st.text(alphabet="a./\\\n\0", max_size=6)
records = st.none() | st.text(max_size=5) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
runs = st.fixed_dictionaries(
    {"project": odd_names, "memory": odd_names, "run_id": odd_ids, "record": records},
    optional={
        "session_id": st.none() | odd_ids,
        "subject": odd_ids,
        "attempt": st.integers(-1, 1_000_001),
        "agents": st.lists(st.text(max_size=3), max_size=2),
        "layout": st.fixed_dictionaries({"memories_dir": odd_dirs}, optional={"sessions_dir": odd_dirs}),
        "record_claim": st.none() | st.just({"sha256": "0" * 64, "size": 1}),
        "x_extra": st.integers(),
    },
)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.filter_too_much])
@hypothesis.given(data=runs)
def test_the_schema_and_the_models_agree(data):
    check = made(models.RUN_COMPLETED)
    try:
        models.run_completed(data)
        accepted = True
    except schemas.errors.Poison:
        accepted = False
    assert check.is_valid(data) == accepted


hashes = st.sampled_from(["0" * 64, "0" * 63, "0" * 64 + "\n", "g" * 64])
files = st.fixed_dictionaries(
    {"path": st.sampled_from(["MEMORY.md", "memory_summary.md", "skills/a"]), "base_sha256": hashes},
    optional={
        "text": st.none() | st.text(max_size=5),
        "text_claim": st.none() | st.just({"sha256": "0" * 64, "size": 1}),
        "x_mode": st.integers(),
    },
)
edits = st.fixed_dictionaries(
    {
        "project": odd_names,
        "memory": st.just("m"),
        "run_id": odd_ids,
        "edit_id": odd_ids,
        "revision": st.integers(-1, 3),
        "files": st.lists(files, max_size=3),
    },
    optional={"subject": odd_ids, "seed": st.none() | st.text(max_size=3), "x_extra": st.integers()},
)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.filter_too_much])
@hypothesis.given(data=edits)
@hypothesis.example(
    {
        **{"project": "a", "memory": "m", "run_id": "r", "edit_id": "e", "revision": 0},
        "files": [{"path": "MEMORY.md", "base_sha256": "0" * 64, "text": ""}] * 2,
    }
)
def test_the_schema_and_the_models_agree_on_edits(data):
    check = made(models.MEMORY_EDITED)
    try:
        models.memory_edited(data)
        accepted = True
    except schemas.errors.Poison:
        accepted = False
    assert check.is_valid(data) == accepted


@hypothesis.given(odd_names | st.text(max_size=10))
def test_the_schema_s_pattern_of_a_name_is_the_code_s(name):
    check = made(models.RUN_COMPLETED, "project")
    assert check.is_valid(name) == (ids.is_file_safe(name) and len(name) <= 63)


def test_every_field_with_a_sentence_in_the_models_has_it_in_the_schema():
    described = schemas.event_schema(models.RUN_COMPLETED)["properties"]
    assert described["attempt"]["description"] == "A higher attempt replaces a lower one of the same run."
    assert schemas.field_docs(models.Changed)["rollout"].startswith("Alias")


# --- AsyncAPI -----------------------------------------------------------------------------------------------


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_of_the_asyncapi_document_leads_somewhere(root):
    document = load(root, schemas.ASYNCAPI)
    for reference in references(document):
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_the_asyncapi_document_is_the_map(root):
    document = load(root, schemas.ASYNCAPI)
    assert document["asyncapi"].startswith("3.")
    assert set(document["channels"]) == {topic.name for topic in pipeline.TOPICS}
    assert set(models.DATA_BY_TYPE) <= set(document["components"]["messages"])
    reading = {stage.name for stage in pipeline.STAGES if stage.reads in document["channels"]}
    received = {name for name, one in document["operations"].items() if one["action"] == "receive"}
    assert received == reading
    sent = [one for one in document["operations"].values() if one["action"] == "send"]
    assert len(sent) == sum(len(stage.emits) for stage in pipeline.STAGES)


def test_the_asyncapi_project_s_own_parser_accepts_the_document(root):
    modules = os.environ.get("RUNLORE_TEST_ASYNCAPI")
    if not modules or shutil.which("node") is None:
        pytest.skip("needs Node, and RUNLORE_TEST_ASYNCAPI=<folder where npm installed @asyncapi/parser>")
    script = (
        "const {Parser} = require('@asyncapi/parser');"
        "let text = ''; process.stdin.on('data', d => text += d).on('end', async () => {"
        "const {diagnostics} = await new Parser().parse(text);"
        "console.log(JSON.stringify(diagnostics.filter(d => d.severity === 0)))})"
    )
    text = (root / "schemas" / schemas.ASYNCAPI).read_text("utf-8")
    found = subprocess.run(
        ["node", "-e", script],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        cwd=modules,
        timeout=60,
    )
    assert json.loads(found.stdout) == []
