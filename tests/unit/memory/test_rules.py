"""What the rules learn, and above all what they do not.

Goal: every lesson rests on structure or behaviour, so it must be found in languages and with tools that no
rule can know, and must not be found where the evidence is missing. Each positive case has its negative twin.
"""

from __future__ import annotations

import json

import pytest
import records
from hypothesis import given
from hypothesis import strategies as st

from runlore.memory import guards, render, rules

EACH_WORLD = pytest.mark.parametrize("world", records.WORLDS, ids=lambda world: world.name)


def fixes(summary):
    return [fix for failure in summary["failures"] for fix in failure["fixes"]]


@EACH_WORLD
def test_a_refused_call_that_worked_with_one_argument_changed_is_a_pair_in_any_language(world):
    learnt = records.summary(
        records.user(world.greeting),
        world.refused(world.wrong, id="a"),
        world.granted(world.right, id="b"),
        records.agent(world.thanks),
    )
    (fix,) = fixes(learnt)
    assert [change["path"] for change in fix["changes"]] == [world.field]
    assert learnt["failures"][0]["head"] == world.tool


@EACH_WORLD
def test_the_signature_does_not_hold_the_value_that_was_refused(world):
    first, second = (
        records.summary(world.refused(value, id="a"), world.granted(world.right, id="b"))["failures"][0]
        for value in (world.wrong, world.right + "9")
    )
    assert first["key"] == second["key"]
    assert world.wrong not in first["key"]


@EACH_WORLD
def test_a_failure_that_came_back_teaches_no_fix(world):
    learnt = records.summary(
        world.refused(world.wrong, id="a"),
        world.granted(world.right, id="b"),
        world.refused(world.wrong, "x2", id="c"),
    )
    assert learnt["failures"][0]["count"] == 2
    assert fixes(learnt) == []


@EACH_WORLD
def test_a_call_that_works_unchanged_the_second_time_is_flaky_and_teaches_nothing(world):
    learnt = records.summary(world.refused(world.wrong, id="a"), world.granted(world.wrong, id="b"))
    assert learnt["failures"][0]["flaky"]
    assert fixes(learnt) == []
    assert "What worked" not in records.tree(records.learn([learnt]))["MEMORY.md"]


@EACH_WORLD
def test_a_run_without_any_failure_teaches_none(world):
    learnt = records.summary(
        records.user(world.greeting),
        world.granted(world.right, id="a"),
        world.granted(world.right, "x2", id="b"),
        records.agent(world.thanks),
    )
    assert learnt["failures"] == []


def test_a_tool_that_only_ever_answers_sentences_is_not_accused():
    learnt = records.learn(
        [
            records.summary(
                records.user("hallo"),
                records.call("notiz", {"inhalt": "eins"}, "Notiz liegt im Fach"),
                records.call("bote", {"ziel": "Lager", "eile": 1}, "Der Bote ist los"),
                about=records.meta(f"r{number}"),
            )
            for number in range(3)
        ]
    )
    assert "Failures" not in records.tree(learnt)["MEMORY.md"]


def test_other_runs_tell_that_a_sentence_was_a_refusal():
    world = records.WORLDS[0]
    alone = records.summary(world.refused(world.wrong, id="a"), about=records.meta("r1"))
    others = [
        records.summary(world.granted(world.right, id="a"), about=records.meta(f"r{number}"))
        for number in (2, 3)
    ]
    assert "Reisetag" not in records.tree(records.learn([alone]))["MEMORY.md"].partition("## Failures")[2]
    assert (
        "Reisetag" in records.tree(records.learn([alone, *others]))["MEMORY.md"].partition("## Failures")[2]
    )


def test_another_errand_of_the_same_tool_is_not_a_fix():
    tool = "lager_buchen"
    first = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5", "f": "6"}
    second = {key: value + "9" for key, value in first.items()}
    learnt = records.summary(
        records.call(tool, first, "Kein Platz im Regal"),
        records.call(tool, second, {"beleg": 1}),
    )
    assert fixes(learnt) == []


def test_a_retry_that_changed_too_much_at_once_teaches_nothing():
    first = {name: name * 2 for name in "abcdefgh"}
    for changed, taught in (("abcd", 1), ("abcde", 0)):
        second = first | {name: name * 3 for name in changed}
        learnt = records.summary(
            records.call("lager_buchen", first, "Kein Platz im Regal"),
            records.call("lager_buchen", second, {"beleg": 1}),
        )
        assert len(fixes(learnt)) == taught


def test_an_odd_object_that_the_agent_answered_with_a_changed_call_is_a_failure():
    learnt = records.summary(
        records.call("kurs", {"von": "EUR", "nach": "XXQ"}, {"grund": "Währung unbekannt"}),
        records.call(
            "kurs", {"von": "EUR", "nach": "USD"}, {"wert": 1.1, "stand": "2026-01-01", "quelle": "EZB"}
        ),
    )
    assert [failure["key"] for failure in learnt["failures"]] == ["Währung unbekannt"]
    assert fixes(learnt)[0]["changes"][0]["path"] == "nach"


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32602, "message": "Unbekannte Spalte qty"}},
        {"isError": True, "content": [{"type": "text", "text": "Unbekannte Spalte qty"}]},
        {"status": 422, "message": "Unbekannte Spalte qty"},
        {"ok": False, "grund": "Unbekannte Spalte qty"},
    ],
)
def test_an_error_object_of_a_protocol_is_a_failure_without_any_retry(answer):
    learnt = records.summary(records.call("tabelle", {"spalte": "qty2"}, answer))
    assert [failure["reason"] for failure in learnt["failures"]] == ["error object"]


@pytest.mark.parametrize(
    "answer", [{"error": None, "wert": 1}, {"errors": [], "wert": 1}, {"status": 200, "wert": 1}]
)
def test_an_object_whose_error_is_empty_is_no_failure(answer):
    assert records.summary(records.call("tabelle", {"spalte": "qty2"}, answer))["failures"] == []


def test_an_exit_code_says_it_all_even_where_the_output_looks_bad():
    good = records.summary(records.shell("make lint", "error error fatal failed", 0))
    bad = records.summary(records.shell("make lint", "alles gut soweit", 2))
    assert good["failures"] == []
    assert [failure["reason"] for failure in bad["failures"]] == ["exit code"]


def test_a_stack_trace_is_recognised_by_its_frames_and_named_by_its_exception():
    trace = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\nOuchError: fasst 12 nicht\n'
    learnt = records.summary(records.call("lauf", {"datei": "a.py"}, trace))
    assert learnt["failures"][0]["message"] == "OuchError: fasst 12 nicht"
    quoted = trace + "\n".join(f"{number}: weiterer Text der Seite" for number in range(30))
    assert records.summary(records.call("lies", {"datei": "a.md"}, quoted))["failures"] == []


def test_the_new_value_is_traced_to_where_it_came_from():
    learnt = records.summary(
        records.user("Bitte zahlen"),
        records.call(
            "konten", {"kunde": "k1"}, {"konten": [{"nummer": "giro-77123"}, {"nummer": "spar-88123"}]}
        ),
        records.call("zahle", {"kunde": "k1", "konto": "alt-00001", "betrag": 10}, "Konto alt-00001 ist zu"),
        records.call("zahle", {"kunde": "k1", "konto": "giro-77123", "betrag": 10}, {"beleg": 5}),
    )
    assert fixes(learnt)[0]["changes"] == [
        {
            "path": "konto",
            "how": "set",
            "was": "alt-00001",
            "is": "giro-77123",
            "from": "answer konten konten[].nummer",
        }
    ]


def test_parts_that_add_up_to_the_number_in_the_error_are_seen():
    def pay(*amounts, answer):
        return records.call(
            "zahle", {"kunde": "k", "ziel": "z", "teile": [{"betrag": a} for a in amounts]}, answer
        )

    learnt = records.summary(pay(100, 50, answer="Summe 150, nötig 175"), pay(100, 75, answer={"beleg": 5}))
    assert fixes(learnt)[0]["changes"][0]["from"] == "error sum"


def test_success_needs_a_check_that_passed_after_the_last_change():
    fail = records.shell("run-checks all", "1 kaputt", 1, id="a")
    done = records.shell("run-checks all", "alles gut", 0, id="b")
    checked = records.summary(records.user("repariere"), fail, records.patch("src/x.py"), done)
    assert checked["verified"]["call"] == "run-checks all"
    changed_after = records.summary(
        records.user("repariere"), fail, records.patch("src/x.py"), done, records.patch("src/y.py", id="p2")
    )
    assert changed_after["verified"] is None
    assert "nothing verified" in records.tree(records.learn([changed_after]))["MEMORY.md"]


def test_the_same_command_that_passed_after_a_change_names_the_change_as_the_fix():
    learnt = records.summary(
        records.shell("run-checks all", "Modul fehlt: kern", 1, id="a"),
        records.patch("src/kern.py"),
        records.shell("run-checks all", "gut", 0, id="b"),
    )
    assert fixes(learnt)[0]["after"] == ["apply_patch update_file src/kern.py"]


def test_what_the_user_said_that_made_the_agent_call_again_is_kept_verbatim():
    learnt = records.summary(
        records.user("Suche mir einen Zug"),
        records.call("zug", {"von": "Ulm", "nach": "Bonn", "tag": "2026-03-02"}, [{"nr": 1}]),
        records.agent("Hier ist einer."),
        records.user("Nein, ich fahre ab Köln, bitte noch einmal."),
        records.call("zug", {"von": "Köln", "nach": "Bonn", "tag": "2026-03-02"}, [{"nr": 2}]),
    )
    (correction,) = learnt["corrections"]
    assert correction["text"] == "Nein, ich fahre ab Köln, bitte noch einmal."
    assert (correction["head"], correction["paths"]) == ("zug", ["von"])


def test_a_user_turn_after_which_the_agent_does_something_else_is_no_correction():
    learnt = records.summary(
        records.user("Suche mir einen Zug"),
        records.call("zug", {"von": "Ulm", "nach": "Bonn"}, [{"nr": 1}]),
        records.user("Schön, dann bitte ein Hotel."),
        records.call("hotel", {"ort": "Bonn"}, [{"nr": 2}]),
    )
    assert learnt["corrections"] == []


def test_the_resume_note_tells_the_open_call_and_the_last_failing_command():
    waiting = {"type": "function_call", "call_id": "w", "name": "freigabe", "arguments": '{"nr": "a-7"}'}
    learnt = records.summary(
        records.user("Mach weiter mit dem Bericht"),
        records.shell("bau bericht.md", "Kapitel 3 fehlt", 3),
        [waiting],
        state="interrupted",
    )
    told = records.tree(records.learn([learnt]), rollout="r1")["memory_summary.md"]
    for wanted in (
        "Mach weiter mit dem Bericht",
        "freigabe a-7",
        "bau bericht.md",
        "Kapitel 3 fehlt",
        "interrupted",
    ):
        assert wanted in told
    assert "bericht" not in records.tree(records.learn([learnt]))["memory_summary.md"].lower()


def test_an_empty_or_broken_record_has_an_empty_digest():
    for broken in (
        "",
        "{",
        "[]",
        "null",
        '{"input": 5, "generated_items": {"a": 1}}',
        '{"input":[null,3,["x"]]}',
    ):
        assert rules.digest(broken, records.meta())["failures"] == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "role",
                        "content",
                        "output",
                        "arguments",
                        "call_id",
                        "name",
                        "text",
                        "action",
                        "error",
                    ]
                )
                | st.text(max_size=5),
                inner
                | st.sampled_from(
                    ["function_call", "shell_call", "mcp_call", "message", "function_call_output"]
                ),
                max_size=6,
            )
        ),
        max_leaves=25,
    )
)
def test_no_item_however_odd_breaks_the_digest_or_the_tree(odd):
    made = rules.digest(json.dumps({"input": [odd], "generated_items": odd}), records.meta())
    records.tree(records.learn([rules.build([made])]), rollout="r1")


@pytest.mark.parametrize("wrong", ["alpha", 7], ids=["text", "number"])
def test_a_call_whose_arguments_are_no_object_teaches_its_fix_as_any_other(wrong):
    """Found by fuzzing: such a run was a dead letter, as the rules failed on it."""
    learnt = records.summary(
        records.user("Look it up."),
        records.call("lookup", wrong, {"error": "there is no such key"}, id="a"),
        records.call("lookup", "beta-77", {"rows": 3}, id="b"),
    )
    ((change,),) = [fix["changes"] for fix in fixes(learnt)]
    assert change["path"] == "arguments" and change["is"] == "beta-77"
    assert any("arguments" in text for text in records.tree(records.learn([learnt])).values())


@pytest.mark.parametrize("at", ["yesterday", "2026-03-01T10:00\n# x", "### now", "12345678901"])
def test_a_time_that_is_none_is_unknown_and_makes_no_heading(at):
    """Found by fuzzing: it became a heading that no file of memory has, and the guards held its rollout for good."""
    about = records.meta(ended_at="unknown")
    known = records.learn([records.summary(records.user("Hello there"), about=about, at=at)])
    parts = render.parts(known, records.LAYOUT)
    assert guards.check(None, known, parts) == []
    assert not any(at in part.text for part in parts.values())


@pytest.mark.parametrize("state", [" ", "\u2028", None, 0, []], ids=repr)
def test_an_end_that_says_nothing_is_unknown(state):
    """Found by fuzzing: a blank one made a row of the selection that the guards refuse."""
    known = records.learn([records.summary(records.user("Hello there"), state=state)])
    assert guards.check(None, known, render.parts(known, records.LAYOUT)) == []


def test_a_digest_keeps_within_its_size():
    from runlore.memory import digest

    long = [
        records.call("werk", {"k": f"{n}", "t": "ß漢" * 400}, {"error": "漢字" * 3000 + str(n)})
        for n in range(200)
    ]
    made = records.digest(*[records.user("あ" * 5000 + str(n)) for n in range(50)], *long)
    assert len(json.dumps(made)) <= digest.DIGEST_BYTES_MAX * 1.1


@pytest.mark.parametrize(("path", "taught"), [("memories/MEMORY.md", False), ("docs/NOTES.md", True)])
def test_looking_memory_up_is_nothing_to_remember(path, taught):
    # Agents are told to search memory in every run, so that would be its most frequent lesson.
    digest = records.digest(
        records.user("Export the orders."),
        records.shell(f"grep --missing export {path}", "grep: unrecognized option", 2, id="a"),
        records.shell(f"grep -n export {path}", "3: export.py", id="b"),
    )
    assert any(path in fact["command"] for fact in digest["facts"]) == taught
    assert bool(digest["failures"]) == taught
    assert (path in digest["files"]) == taught
