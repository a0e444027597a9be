"""`runlore serve` on one machine, as a process: the whole pipeline in it, its keys, its end."""

from __future__ import annotations

import json

import serving

import made
from lookup_service import tar, untar

ACME = "/v1/projects/acme"


def test_one_command_is_the_pipeline_and_the_service(home, tmp_path):
    one = serving.Served(home, "--up").start()
    status, raw, _ = one.ask(f"{ACME}/archives", tar(("a.txt", b"one")))
    assert status == 201
    data = made.data(1, rollout="conv", workspaces=[{"archive": json.loads(raw)}])
    assert one.ask(f"{ACME}/events", json.dumps(data).encode())[0] == 202
    wanted = f"{ACME}/memories/support/seed?session_id=conv&wait_for=run-1&wait_seconds=60"
    status, raw, _ = one.ask(wanted)
    seed = json.loads(raw)
    assert status == 200 and seed["revision"] == 1 and seed["snapshot"]
    status, raw, _ = one.ask(f"{ACME}/seeds/{seed['seed']}/workspace.tar")
    files = untar(raw)
    assert files["a.txt"] == b"one" and files["memories/MEMORY.md"]
    # The command line reads the same id, beside it.
    answer = home.json("seed", seed["seed"], "--into", str(tmp_path / "space"))
    assert answer["revision"] == 1 and (tmp_path / "space/a.txt").read_bytes() == b"one"
    assert one.drain() == 0


def test_keys_are_made_shown_once_listed_revoked_and_kept_in_the_audit_log(home):
    home.environment["RUNLORE_HTTP_KEYS"] = "true"
    key = home.json("keys", "create", "acme", "--scope", "read", "--name", "ci", "--reason", "a test")
    headers = {"Authorization": f"Bearer {key['token']}"}
    one = serving.Served(home).start()
    assert one.ask(f"{ACME}/memories", headers=headers)[0] == 200
    assert one.ask(f"{ACME}/memories")[0] == 401
    assert one.ask("/v1/projects/shop/memories", headers=headers)[0] == 403
    assert one.ask(f"{ACME}/events", b"{}", headers=headers)[0] == 403
    one.end()
    (listed,) = home.json("keys", "list", "acme")["keys"]
    assert listed["id"] == key["id"] and "token" not in listed and "sha256" not in listed
    assert home.json("keys", "revoke", key["id"], "--reason", "left")["revoked_at"]
    one.start()
    assert one.ask(f"{ACME}/memories", headers=headers)[0] == 401
    assert one.drain() == 0
    acts = home.json("audit")["acts"]
    assert {act["what"] for act in acts} == {"keys create", "keys revoke"} and len(acts) == 2
    assert key["token"].rpartition("_")[2] not in json.dumps(acts) + one.log()
