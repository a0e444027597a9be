"""A team's own topic at the command line: check, run, redrive, on the embedded log, and once on a real broker."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import textwrap

import homes
import pytest

import foreign
from runlore import sources
from runlore.bus import port

TOPIC = "shop.chat.closed"
ORDERS = foreign.EXAMPLES / "orders.toml"
SAMPLE = foreign.EXAMPLES / "orders-sample.json"


def chats(count, *, without_rollout=()):
    """Events of the order desk."""
    for number in range(count):
        chat = {"closing": f"r-{number}"} | ({} if number in without_rollout else {"id": f"c-{number % 20}"})
        yield foreign.order(event_id=f"e-{number}", chat=chat)


def publish(home, values, *, topic=TOPIC, headers=()):
    """What their producer does."""
    raw = [one if isinstance(one, bytes) or one is None else json.dumps(one).encode() for one in values]
    messages = [port.Outgoing(topic, b"key-%d" % n, one, list(headers)) for n, one in enumerate(raw)]
    home.opened(lambda opened: opened.bus.produce(messages))


def written(folder, name, text):
    path = folder / name
    path.write_text(textwrap.dedent(text), "utf-8")
    return path


# --- run ----------------------------------------------------------------------------------------------------


def test_a_rehearsal_counts_what_would_happen_and_changes_nothing(home):
    publish(home, chats(120, without_rollout={7, 50, 99}))
    words = ("source", "run", ORDERS, "--from-beginning", "--dry-run", "--limit")
    done = home.call(*words, 120)
    assert done.out == "117 mapped · 3 dead letters (missing_rollout 3)\n"
    assert f"{TOPIC}/" in done.err and "chat.id is not there; chat has closing" in done.err
    assert home.json(*words, 100)["mapped"] + home.json(*words, 100)["dead"] == 100
    assert home.json("dead")["total"] == 0 and home.up_once()["recorded"] == 0


def test_a_topic_becomes_memory_and_reading_it_again_changes_nothing(home):
    publish(home, [*chats(10, without_rollout={3}), {"type": "chat_opened"}, None, b"\xff"])
    told = home.json("source", "run", ORDERS, "--once")
    assert (told["mapped"], told["skipped"], told["tombstones"]) == (9, 1, 1)
    assert told["reasons"] == {"bad_json": 1, "missing_rollout": 1}
    assert home.up_once()["recorded"] == 9
    before = home.meaning()
    assert home.json("source", "run", ORDERS, "--once")["mapped"] == 0
    assert home.json("source", "run", ORDERS, "--once", "--from-beginning")["mapped"] == 9
    done = home.up_once()
    assert (done["recorded"], done["already"]) == (0, 9)
    assert home.meaning() == before and home.json("dead")["total"] == 2
    assert home.json("explain", "e-1")["runs"][0]["state"] == "consolidated"
    home.verified()


def test_options_name_the_project_and_the_memory(home):
    publish(home, chats(2))
    home.json("source", "run", ORDERS, "--once", "--project", "globex", "--memory", "desk")
    home.up_once()
    assert home.json("log", "--project", "globex", "--memory", "desk")["revisions"]


def test_ctrl_c_ends_it_and_the_next_one_goes_on_where_it_stopped(home):
    publish(home, chats(30))
    process = home.start("source", "run", ORDERS, "--json")
    lag = lambda: home.opened(lambda o: o.bus.lag(group="source-orders", topic=TOPIC))  # noqa: E731
    homes.wait_until(lambda: not any(lag().values()), "the source to catch up")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert process.returncode == 0 and json.loads(out)["mapped"] == 30, err
    publish(home, [foreign.order(event_id="e-late", chat={"id": "c-1", "closing": "late"})])
    assert home.json("source", "run", ORDERS, "--once")["mapped"] == 1
    assert home.up_once()["recorded"] == 31


def test_killed_at_any_moment_it_loses_nothing_and_doubles_nothing(home):
    publish(home, chats(200))
    for _ in range(3):
        process = home.start("source", "run", ORDERS, stderr=subprocess.DEVNULL)
        homes.wait_until(lambda: any(home.opened(_committed).values()), "the source to begin")
        homes.kill(process)
    home.json("source", "run", ORDERS, "--once")
    done = home.up_once()
    assert done["recorded"] == 200 and done["dead"] == 0
    home.verified()


async def _committed(opened):
    return await opened.bus.committed(group="source-orders", topic=TOPIC)


# --- letters ------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_mapped_anew_and_never_redriven_into_runs(home, tmp_path):
    lost = foreign.order(event_id="e-lost", chat={"closing": "r-lost"}, ticket="t-9")
    publish(home, [lost, foreign.order(turns=[{"from": "bot", "text": "Hi."}])], headers=[("x", b"\xff")])
    home.json("source", "run", ORDERS, "--once")
    letters = {one["reason"]: one["id"] for one in home.json("dead")["dead"]}
    assert letters.keys() == {"missing_rollout", "bad_messages"}

    # The general redrive leaves them where they are, and says who can take them up.
    done = home.call("dead", "redrive", letters["missing_rollout"], "--note", "x", code=4)
    assert f"runlore source redrive MAP {letters['missing_rollout']}" in done.err
    assert len(home.json("dead", "redrive", "--all", "--note", "x")["left"]) == 2
    assert home.up_once()["recorded"] == 0 and home.json("dead")["total"] == 2

    text = ORDERS.read_text("utf-8").replace('rollout = "chat.id"', 'rollout = "chat.id || ticket"')
    mended = written(
        tmp_path, "orders.toml", text.replace('customer = "user"', 'customer = "user", bot = "assistant"')
    )
    words = ("source", "redrive", mended, "--note", "mended")
    assert home.json(*words, "--all", "--dry-run")["mapped"] == 2 and home.json("dead")["total"] == 2
    assert home.json("source", "redrive", ORDERS, "--all", "--note", "x")["dead"] == 2
    assert home.json(*words, letters["missing_rollout"][:8])["mapped"] == 1
    assert home.json(*words, "--reason", "bad_messages")["mapped"] == 1
    assert home.json("dead")["total"] == 0 and home.up_once()["recorded"] == 2
    assert home.json("explain", "e-lost")["runs"][0]["state"] == "consolidated"
    home.json("source", "redrive", mended, "0123456789", "--note", "x", code=3)
    # As with everything that changes things: why is asked for, and kept.
    home.json("source", "run", ORDERS, "--once", "--from-beginning")
    acts = [one for one in home.json("audit")["acts"] if one["what"] == "source redrive"]
    assert {one["reason"] for one in acts} == {"mended", "x"} and {one["state"] for one in acts} == {"done"}
    publish(home, [lost])
    home.json("source", "run", ORDERS, "--once")
    home.json("source", "redrive", mended, "--all", code=2)


# --- check --------------------------------------------------------------------------------------------------


def test_a_sample_is_told_field_by_field_and_a_wrong_one_with_what_to_write(home, tmp_path):
    assert home.json("source", "check", ORDERS, SAMPLE)["samples"][0]["event"]["id"] == "evt-5501"
    bot = foreign.order()
    bot["turns"][4]["from"] = "bot"
    wrong = written(tmp_path, "sample.json", json.dumps(bot))
    done = home.call("source", "check", ORDERS, wrong, code=6)
    assert '  ✓ rollout   chat.id → "c-981"\n' in done.out
    assert '  ✗ messages  turns[4] has no role; map it with roles = {bot = "assistant"}\n' in done.out
    assert done.out.endswith("0 mapped · 1 dead letter (bad_messages 1)\n")
    told = home.json("source", "check", ORDERS, wrong, SAMPLE, code=6)
    assert (told["mapped"], told["dead"], [one["ok"] for one in told["samples"]]) == (1, 1, [False, True])
    assert not home.root.exists()


def test_samples_come_as_lines_and_from_a_pipe(home):
    lines = b"\n".join(json.dumps(one).encode() for one in chats(5, without_rollout={2}))
    done = home.call("source", "check", ORDERS, "-", stdin=lines + b"\n{broken\n", code=6)
    assert "4 mapped · 2 dead letters (bad_json 1, missing_rollout 1)" in done.out
    assert "-:3\n" in done.out and "-:6\n" in done.out


def test_a_secret_in_a_sample_is_told_and_never_shown(home, tmp_path):
    secret = "sk-proj-" + "a1B2" * 10
    value = foreign.order(customer={"ref": secret})
    value["turns"][0]["text"] = f"My key is {secret}"
    done = home.call("source", "check", ORDERS, written(tmp_path, "s.json", json.dumps(value)))
    assert secret not in done.out + done.err and "[redacted:openai-key]" in done.out
    assert "subject holds a secret" in done.out and "openai-key 1" in done.out


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ('[run]\nrun_id = "meta.deliveryId"', "sounds like something drawn at each delivery"),
        ('[run]\nrun_id = "closed_at"', "looks like a time"),
        ("[run]\n", "neither run.id nor run.run_id is mapped"),
        ("[run]\n", "run.subject is not mapped"),
        ('[run]\nrun_id = "event_id"', "nothing reads blob (5,002 bytes)"),
        ('[run]\nrun_id = "event_id"', "1 of 2 messages and outputs are empty"),
    ],
)
def test_what_works_and_may_not_be_meant_is_warned_of(home, tmp_path, lines, warning):
    head = 'topic = "t"\nproject = "acme"\nmemory = "support"\nmessages = "turns"\n'
    value = {"meta": {"deliveryId": "7"}, "closed_at": "2026-03-02T10:00:00Z", "event_id": "e", "blob": "x" * 5000,
             "turns": [{"role": "user", "content": "Hi."}, {"role": "user", "body": "x"}]}  # fmt: skip
    made = written(tmp_path, "m.toml", f"{head}{lines}\n")
    told = home.json("source", "check", made, "-", stdin=json.dumps(value).encode())
    assert any(warning in one for one in told["warnings"]), told["warnings"]


def test_two_samples_that_differ_in_their_id_only_are_warned_of(home):
    first, second = foreign.order(), foreign.order(chat={"id": "c-981", "closing": "another"})
    raw = b"\n".join(json.dumps(one).encode() for one in (first, second))
    assert any(
        "two samples say the same" in one
        for one in home.json("source", "check", ORDERS, "-", stdin=raw)["warnings"]
    )


def test_an_object_is_given_as_a_file_and_a_function_that_draws_its_answer_is_found_out(home, tmp_path):
    made = written(
        tmp_path,
        "m.toml",
        """
        topic = "t"
        project = "acme"
        memory = "support"
        messages = { object = "url", at = "turns" }
        run = { rollout = "source_draws:rollout" }
        objects = { prefixes = ["s3://chats/"] }
        """,
    )
    written(
        tmp_path,
        "source_draws.py",
        "import itertools\nn = itertools.count()\ndef rollout(event):\n    return next(n)\n",
    )
    turns = written(tmp_path, "turns.json", json.dumps({"turns": [{"role": "user", "content": "Hi."}]}))
    words = ("source", "check", made, "-", "--object", turns)
    told = home.json(*words, stdin=b'{"url": "s3://chats/1"}', code=6)
    assert "the same message gave two events" in told["samples"][0]["fields"][-1]["problem"]
    told = home.json(*words, stdin=b'{"url": "s3://other/1"}', code=6)
    assert told["reasons"] == {"object_refused": 1}


# --- Avro ---------------------------------------------------------------------------------------------------


def test_avro_with_a_schema_id_is_read_by_a_function_beside_the_mapping(home, tmp_path):
    fastavro = pytest.importorskip("fastavro")
    schema = {
        "type": "record", "name": "Closed", "fields": [
            {"name": "conversation", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "closed", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "turns", "type": {"type": "array", "items": {"type": "record", "name": "Turn", "fields": [
                {"name": "role", "type": {"type": "enum", "name": "Role", "symbols": ["user", "assistant"]}},
                {"name": "content", "type": "string"}]}}},
        ],
    }  # fmt: skip
    registry = written(tmp_path, "registry.json", json.dumps({"7": schema}))
    written(
        tmp_path,
        "closed_avro.py",
        f"""
        import io, json
        import fastavro

        with open({str(registry)!r}) as file:
            SCHEMAS = json.load(file)

        def decode(value, headers):
            magic, number = value[0], int.from_bytes(value[1:5], "big")
            if magic:
                raise ValueError("no schema id")
            schema = fastavro.parse_schema(SCHEMAS[str(number)])
            return fastavro.schemaless_reader(io.BytesIO(value[5:]), schema)
        """,
    )
    made = written(
        tmp_path,
        "closed.toml",
        """
        topic = "closed.avro"
        project = "acme"
        memory = "support"
        decode = "closed_avro:decode"
        messages = "turns"
        run = { rollout = "conversation", time = "closed" }
        """,
    )

    def packed(number, words):
        out = io.BytesIO()
        value = {
            "conversation": f"00000000-0000-0000-0000-00000000000{number}", "closed": 1772452800000 + number,
            "turns": [{"role": "user", "content": words}, {"role": "assistant", "content": "Done."}],
        }  # fmt: skip
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
        return b"\x00" + (7).to_bytes(4, "big") + out.getvalue()

    sample = tmp_path / "sample.avro"
    sample.write_bytes(packed(1, "Ship it."))
    told = home.json("source", "check", made, sample)
    assert told["samples"][0]["event"]["time"] == "2026-03-02T12:00:00.001000+00:00"
    publish(
        home,
        [packed(n, f"Ship {n}.") for n in range(3)] + [b"\x01 no avro", b"\x00" + bytes(4) + b"x"],
        topic="closed.avro",
    )
    told = home.json("source", "run", made, "--once")
    assert told["mapped"] == 3 and told["reasons"] == {"undecodable": 2}
    assert home.up_once()["recorded"] == 3
    sys.modules.pop("closed_avro", None)


# --- recorded runs ------------------------------------------------------------------------------------------

RECORDED = """
    topic = "their.runs"
    project = "acme"
    memory = "support"
    where = "kind == 'run.ended'"

    [run]
    rollout = "meta.thread"
    run_id = "meta.run"
    subject = "meta.who"
    agents = "meta.bots"
    time = { value = "unknown" }

    [messages]
    at = "body.log"
    role = "who"
    text = "say"
    roles = { us = "assistant", them = "user", did = "call", got = "tool" }
    call = { id = "ref", name = "tool", arguments = "with", output = "out" }

    [end]
    state = "end.how"
    error_type = "end.why"
    final_output = "end.result"
"""


def as_log(items):
    """The items of a record as a flat list of another shape."""
    for item in items:
        if item.get("type") == "function_call":
            yield {"who": "did", "tool": item["name"], "with": item["arguments"], "ref": item["call_id"]}
        elif item.get("type") == "function_call_output":
            yield {"who": "got", "say": item["output"], "ref": item["call_id"]}
        else:
            yield {"who": {"user": "them", "assistant": "us"}[item["role"]], "say": item["content"]}


def wrapped(data):
    """The data of an imported run as an event of another team."""
    payload = json.loads(data["record"])
    end = payload["terminal_metadata"]
    return {
        "kind": "run.ended",
        "meta": {"thread": data["conversation_id"], "run": data["run_id"], "who": data.get("subject"),
                 "bots": data.get("agents")},
        "body": {"log": [*as_log(payload["input"] + payload["generated_items"])]},
        "end": {"how": end["terminal_state"], "why": end["exception_type"], "result": payload.get("final_output")},
    }  # fmt: skip


@pytest.mark.data
def test_recorded_runs_in_a_foreign_shape_make_the_memory_that_importing_them_makes(home, recorded, tmp_path):
    folders = {"chat": recorded / "tau-bench", "swe-agent": recorded / "swe-agent"}
    imported = [
        one.data
        for name, path in folders.items()
        for one in sources.read(name, path, project="acme", memory="support")
    ]
    publish(home, [wrapped(data) for data in imported], topic="their.runs")
    told = home.json("source", "run", written(tmp_path, "their.toml", RECORDED), "--once")
    assert (told["mapped"], told["dead"]) == (106, 0)
    assert home.up_once()["recorded"] == 106

    other = homes.Home(tmp_path / "imported")
    for name, path in folders.items():
        other.json("import", name, path, *homes.MEANT)
    other.up_once()
    mine, theirs = home.meaning(), other.meaning()
    for name in ("notes", "selected", "covered", "files", "held"):
        assert mine[name] == theirs[name], name
    lines = [{key: body.split(b"\n", 1)[1] for key, body in one["records"].items()} for one in (mine, theirs)]
    assert lines[0] == lines[1]
    home.verified()


@pytest.mark.data
def test_recorded_chats_in_their_own_shape_need_only_two_lines(home, recorded, tmp_path):
    lines = [
        json.loads(line)
        for line in next((recorded / "tau-bench").glob("*.jsonl")).read_text("utf-8").splitlines()
    ]
    made = written(
        tmp_path,
        "tau.toml",
        'topic = "tau"\nproject = "acme"\nmemory = "support"\nmessages = "traj"\n'
        'run = { rollout = "join(\'-\', [to_string(task_id), to_string(trial)])", subject = "info.task.user_id" }\n',
    )
    publish(home, lines, topic="tau")
    assert home.json("source", "run", made, "--once")["mapped"] == len(lines) == 100


# --- a real broker ------------------------------------------------------------------------------------------


async def test_on_kafka_it_reads_the_teams_own_topic_and_makes_none(kafka_server, tmp_path):
    from aiokafka import AIOKafkaProducer

    import brokers

    prefix = "source-e2e."
    await brokers.create_topics(
        kafka_server.servers, f"{prefix}runs", f"{prefix}dead", f"{prefix}changed", partitions=2
    )
    await brokers.create_topics(kafka_server.servers, TOPIC, partitions=3)
    async with AIOKafkaProducer(bootstrap_servers=kafka_server.servers) as theirs:
        for number, one in enumerate([*chats(40, without_rollout={5}), None]):
            raw = None if one is None else json.dumps(one).encode()
            await theirs.send_and_wait(TOPIC, raw, key=b"k%d" % number, headers=[("h", b"\xff")])
    home = homes.Home(
        tmp_path / "home", bus="kafka", kafka_servers=kafka_server.servers, kafka_topic_prefix=prefix,
        kafka_group_prefix=prefix,
    )  # fmt: skip

    async def run(*more, code=0, mapping=ORDERS):
        import asyncio

        words = [homes.RUNLORE, "source", "run", mapping, "--once", "--json", *more]
        process = await asyncio.create_subprocess_exec(
            *map(str, words), env=home.environment, stdout=-1, stderr=-1
        )
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return json.loads(out)

    assert [(told := await run())["mapped"], told["dead"], told["tombstones"]] == [39, 1, 1]
    assert (await run())["mapped"] == 0
    assert (await run("--dry-run", "--from-beginning"))["mapped"] == 39
    assert (await run("--from-beginning"))["mapped"] == 39
    runs = await brokers.everything(kafka_server.servers, f"{prefix}runs")
    assert len(runs) == 78 and len({record.value for record in runs}) == 39
    (letter,) = {
        dict(one.headers)["rl_dead"]
        for one in await brokers.everything(kafka_server.servers, f"{prefix}dead")
    }
    assert letter and len(await brokers.everything(kafka_server.servers, TOPIC)) == 41
    typo = written(tmp_path, "typo.toml", ORDERS.read_text("utf-8").replace(TOPIC, "shop.chat.clsoed"))
    error = (await run(code=5, mapping=typo))["error"]
    assert error["kind"] == "blocked" and "makes none" in error["hint"]
    async with brokers.admin(kafka_server.servers) as admin:
        assert not {name for name in await admin.list_topics() if "shop" in name} - {TOPIC}
