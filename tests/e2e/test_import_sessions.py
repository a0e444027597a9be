"""From the session files of Codex CLI and Claude Code to the next run's seed, and again when the files have grown."""

from __future__ import annotations

import homes
import pytest

import sessions

ERROR = "error: relation 'orders' does not exist"


def codex_file(folder, number, *more):
    """A thread in which a command failed, and worked with another option."""
    thread = f"0199a000-0000-7000-8000-{number:012d}"
    turn = sessions.codex_turn(
        1,
        sessions.user(f"Migrate database {number}."),
        *sessions.shell("psql --db shop -c 'select 1'", ERROR, "c1", 2),
        *sessions.shell("psql --db shop2 -c 'select 1'", "1 row", "c2", 0),
        sessions.said("Migrated."),
    )
    name = f"2026/03/0{number}/rollout-2026-03-0{number}T10-00-00-{thread}.jsonl"
    return sessions.write(folder / name, sessions.meta(thread), *turn, *more)


def claude_file(folder, number, *more):
    session = f"5e551000-0000-4000-8000-{number:012d}"

    def line(make, name, *values, **named):
        return make(f"{session[:-12]}{number:04d}{name:08d}", *values, session=session, **named)

    lines = [
        line(sessions.asked, 1, f"Migrate database {number}."),
        line(sessions.used, 2, "Bash", {"command": "psql --db shop -c 'select 1'"}, "t1"),
        line(sessions.resulted, 3, f"Exit code 2\n{ERROR}", "t1", is_error=True),
        line(sessions.used, 4, "Bash", {"command": "psql --db shop2 -c 'select 1'"}, "t2"),
        line(sessions.resulted, 5, "1 row", "t2"),
        line(sessions.answered, 6, "Migrated."),
    ]
    grown = [line(*one) for one in more]
    return sessions.write(folder / f"-src-shop/{session}.jsonl", *lines, *grown)


@pytest.mark.parametrize(
    ("fmt", "make", "first", "second"),
    [
        (
            "codex",
            codex_file,
            sessions.codex_turn(2, sessions.user("And the docs?"), sessions.said("Let me see."))[:-1],
            sessions.codex_turn(
                2, sessions.user("And the docs?"), sessions.said("Let me see."), sessions.said("Ok.")
            ),
        ),
        (
            "claude-code",
            claude_file,
            [(sessions.asked, 7, "And the docs?"), (sessions.answered, 8, "Let me see.")],
            [
                (sessions.asked, 7, "And the docs?"),
                (sessions.answered, 8, "Let me see."),
                (sessions.answered, 9, "Ok."),
            ],
        ),
    ],
    ids=["codex", "claude-code"],
)
def test_session_files_become_the_next_runs_seed_and_may_grow(home, tmp_path, fmt, make, first, second):
    folder = tmp_path / "sessions"
    for number in (1, 2, 3):
        make(folder, number)
    done = home.json("import", fmt, folder, *homes.MEANT)
    assert (done["runs"], done["rollouts"], done["problems"]) == (3, 3, [])
    home.up_once()
    home.json("seed", "the-next", *homes.MEANT, "--into", tmp_path / "work")
    told = (tmp_path / "work" / "memories" / "memory_summary.md").read_text("utf-8")
    assert "relation" in told and "shop2" in told  # What failed, and what worked.

    # Both are imported in the midst of a turn and once more when it is over.
    make(folder, 3, *first)
    assert home.json("import", fmt, folder, *homes.MEANT)["runs"] == 4
    home.up_once()
    make(folder, 3, *second)
    assert home.json("import", fmt, folder, *homes.MEANT)["runs"] == 4
    assert home.up_once()["dead"] == 0
    rollout = next(one for one in home.json("seed", *homes.MEANT)["rollouts"] if one["runs"] == 2)
    states = [one["state"] for one in home.json("explain", rollout["original"])["runs"]]
    assert sorted(states) == ["consolidated", "consolidated", "superseded"]
