"""Invariant 9: no project sees another's, and what is personal does not cross subjects."""

from __future__ import annotations

import hashlib
import json

import homes

import made
from runlore import producer

PERSONAL = ("canary-text-anna", "canary-argument-4411", "canary-output-7733", "canary-answer-2299")
OTHER = ("-p", "zoo", "-m", "support")


def personal_run(number, words, tool="book_flight"):
    """A run whose request, arguments, outputs and answer hold these words, in failures and fixes too."""
    text, argument, output, answer = words
    items = [
        *made.call(
            f"{number}a", tool, {"who": argument, "class": "first"}, {"error": f"no seat for {output}"}
        ),
        *made.call(f"{number}b", tool, {"who": argument, "class": "economy"}, {"ok": output}),
        *made.call(f"{number}c", tool, {"who": argument, "meal": text}, f"Error: {output} unknown to us"),
    ]
    return made.payload(number, text=f"I am {text}; always seat me at {argument}", items=items, final=answer)


def everything(home, *more):
    """All that a person can be shown of a memory: seeds, files, reasons, diffs and search."""
    said = [home.json("seed", "a-new-one", *more), home.json("diff", *more)]
    memory = [word for word in more if word != "--subject"]
    for one in home.json("show", *more)["files"]:
        shown = home.json("show", one["path"], *more)
        said.append(shown)
        lines = [at for at, line in enumerate(shown["text"].splitlines(), 1) if line.startswith("- ")]
        said += [home.json("why", f"{one['path']}:{at}", *more) for at in lines[:4]]
    said += [home.json("search", word, *more) for word in (*PERSONAL, "seat", "book_flight")]
    return json.dumps([said, memory])


def test_nothing_personal_of_one_subject_is_shown_to_another_or_to_nobody(home, tmp_path):
    events = [
        made.event(1, rollout="anna-1", subject="anna@example.org", record=personal_run(1, PERSONAL)),
        made.event(2, rollout="anna-2", subject="anna@example.org", record=personal_run(2, PERSONAL)),
        made.event(
            3, rollout="bert-1", subject="bert", record=personal_run(3, ("b-text", "b-arg", "b-out", "b-end"))
        ),
        made.event(4, rollout="no-one", record=made.payload(4)),
    ]
    home.emit(made.lines(events))
    home.up_once()
    for more in (homes.MEANT, (*homes.MEANT, "--subject", "bert")):
        said = everything(home, *more)
        # What was searched for is in the answer to nobody's search.
        assert not [canary for canary in (*PERSONAL, "anna@example.org") if canary in said], more
    for number, more in enumerate(((), ("--subject", "bert"))):
        work = tmp_path / f"w{number}"
        home.json("seed", "a-new-one", *homes.MEANT, *more, "--into", work)
        raw = b"".join(homes.tree(work).values()).decode()
        assert not [canary for canary in (*PERSONAL, "anna@example.org") if canary in raw], more
        assert not [path for path in homes.tree(work) if "anna" in path]
    hers = everything(home, *homes.MEANT, "--subject", "anna@example.org")
    assert "canary-text-anna" in hers
    home.verified()


def test_a_rollout_with_runs_for_two_subjects_is_shown_to_neither(home):
    other = ("b-text", "b-argument", "b-output", "b-answer")
    events = [
        made.event(1, rollout="shared", subject="anna", record=personal_run(1, PERSONAL)),
        made.event(2, rollout="shared", subject="bert", record=personal_run(2, other)),
        made.event(3, rollout="late", record=made.payload(3)),
        made.event(4, rollout="late", subject="anna", record=personal_run(4, PERSONAL)),
    ]
    for event in events:
        home.emit(made.lines([event]))
        home.up_once()
    home.verified()
    for subject, words in (("bert", PERSONAL), ("anna", other)):
        said = everything(home, *homes.MEANT, "--subject", subject)
        assert not [canary for canary in words if canary in said], subject
    # A rollout that becomes somebody's is theirs from then on.
    assert home.json("search", "canary-text-anna", *homes.MEANT)["results"] == []
    found = home.json("search", "canary-text-anna", *homes.MEANT, "--subject", "anna")["results"]
    assert [row["rollout"] for row in found] == ["late"]


def test_no_command_of_one_project_shows_another(home):
    record = personal_run(1, PERSONAL)
    home.emit(made.lines([made.event(1, record=record), made.event(2, project="zoo", rollout="zoo-conv")]))
    home.up_once()
    said = [
        everything(home, *OTHER),
        home.json("log", *OTHER),
        home.json("seed", *OTHER),
        home.json("review", "list", *OTHER),
    ]
    said += [home.json("search", "task", *OTHER), home.json("verify", "-p", "zoo"), home.json("show", *OTHER)]
    assert "canary" not in json.dumps(said) and "conv-1" not in json.dumps(said)
    # Two projects with the same words share no object.
    both = [home.objects(), {}]
    for key in both[0]:
        both[1].setdefault(key.split("/")[0], set()).add(key.split("/", 1)[1].rpartition("/")[2])
    assert not {name for name in both[1]["acme"] & both[1]["zoo"] if len(name) == 64}


def test_a_claim_of_another_project_is_missing(home):
    line = json.dumps(personal_run(1, PERSONAL), separators=(",", ":")).encode()
    home.opened(lambda opened: producer.put_claim(opened.store, "acme", line))
    claim = {"sha256": hashlib.sha256(line).hexdigest(), "size": len(line)}
    theirs = made.event(1, project="zoo")
    theirs["data"] = {**theirs["data"], "record": None, "record_claim": claim}
    ours = made.event(1)
    ours["data"] = {**ours["data"], "record": None, "record_claim": claim}
    home.emit(made.lines([theirs, ours]))
    done = home.up_once()
    assert (done["recorded"], done["dead"]) == (1, 1)
    (letter,) = home.json("dead")["dead"]
    assert letter["reason"] == "claim_missing" and letter["event"] == theirs["id"]
    assert home.json("seed", "x", *OTHER)["revision"] == 0
