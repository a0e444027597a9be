"""`runlore audit` as whoever answers for a deployment uses it: who was given what, and was the log changed?"""

from __future__ import annotations

import json

import serving

import made

WHY = ("--reason", "a test")
SEED = "/v1/projects/acme/memories/support/seed?session_id="


def alter(home, key):
    """One letter of an object is another; what it was."""
    path = home.root / "store" / key
    raw = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(raw.replace(b'"at"', b'"At"', 1))
    return path, raw


def test_whoever_got_a_revision_is_told_also_after_a_kill_and_a_change_of_any_log_is_found(home):
    home.emit(json.dumps(made.data(1)).encode())
    home.up_once()
    home.environment["RUNLORE_HTTP_KEYS"] = "true"
    key = home.json("keys", "create", "acme", "--name", "ci", *WHY)
    headers = {"Authorization": f"Bearer {key['token']}", "X-Request-Id": "r-1"}
    one = serving.Served(home).start()
    given = json.loads(one.ask(f"{SEED}s-1", headers=headers)[1])
    assert one.ask(f"{SEED}s-2", headers=headers)[0] == 200
    one.end()
    one.start()
    assert one.ask(f"{SEED}s-3", headers=headers)[0] == 200
    assert one.drain() == 0
    number = given["revision"]
    asked = ("audit", "--seeds", "-p", "acme", "-m", "support", "--revision", str(number))
    found = home.json(*asked)
    assert [row["rollout"] for row in found["seeds"]] == ["s-3", "s-2", "s-1"] and not found["more"]
    assert {row["by"]["key"] for row in found["seeds"]} == {key["id"]}
    assert {row["request"] for row in found["seeds"]} == {"r-1"}
    assert home.json(*asked, "--rollout", "s-2")["seeds"] == found["seeds"][1:2]
    assert home.json("audit", "--seeds", "--actor", "nobody")["seeds"] == []
    assert f"revision {number}" in home.call("audit", "--seeds", "--actor", "ci", "-n", "1").out
    # A command that hands out a seed goes by the same setting.
    home.json("seed", "s-4", "-p", "acme", "-m", "support")
    assert home.json("audit", "--seeds", "--rollout", "s-4")["seeds"][0]["by"]["user"]
    whole = home.json("audit", "verify")
    assert whole["is_whole"] and (whole["seeds"]["writers"], whole["seeds"]["entries"]) == (3, 4)
    assert home.json("audit", "verify", "--expect", f"acts:{whole['acts']['tip']}", "--expect", whole["tip"])[
        "is_whole"
    ]
    home.verified()
    kept = home.objects()
    shown = json.dumps(home.json("audit")) + json.dumps(found)
    assert key["token"].rpartition("_")[2] not in shown and given["seed"] not in shown
    for prefix in ("_operations/seeds/", "_operations/acts/log/", "_operations/admin/log/"):
        first = next(name for name in sorted(kept) if name.startswith(prefix))
        path, raw = alter(home, first)
        assert first.rpartition("/")[2] in " ".join(home.json("audit", "verify", code=6)["problems"])
        path.unlink()
        problems = home.json("audit", "verify", code=6)["problems"]
        assert "missing" in " ".join(problems)
        path.write_bytes(raw)
    assert home.json("audit", "verify")["is_whole"]
