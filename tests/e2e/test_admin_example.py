"""Administration as a process: the example with OpenAI's own client against `runlore serve`, and `runlore admin`."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import homes
import serving

EXAMPLE = homes.ROOT / "examples" / "admin.py"
WHY = ("--reason", "a test")


def test_the_example_sets_up_hits_its_limit_and_reads_all_of_it_back(home):
    home.environment["RUNLORE_HTTP_KEYS"] = "true"
    admin = home.json("admin", "bootstrap", *WHY)
    one = serving.Served(home).start()
    environment = {
        **home.environment,
        "OPENAI_BASE_URL": f"{one.url}/v1",
        "OPENAI_ADMIN_KEY": admin["token"],
    }
    done = subprocess.run(
        [sys.executable, EXAMPLE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert one.drain() == 0
    told = done.stdout.splitlines()
    assert told[:3] == [
        "project shop-bots, service account checkout, role member",
        "seed: 3 requests in a minute",
        "models: $50.00 in a month, inactive",
    ]
    # The turn of a minute begins a new count.
    assert re.fullmatch(r"request (4|5|6|7) is one too many; again in \d+ s", told[3])
    assert told[4:6] == [
        "the agent's key administers nothing: forbidden",
        "the service account is gone, and its key with it",
    ]
    assert told[6:] == [
        f"{what} by {admin['id']}: {changed}"
        for what, changed in (
            ("service_account.deleted", ""),
            ("project.updated", "{'spend_limit_cents': 5000}"),
            ("rate_limit.updated", "{'max_requests_per_1_minute': 3}"),
            ("api_key.created", "{'scopes': ['write']}"),
            ("service_account.created", "{'role': 'member'}"),
            ("project.created", "{'name': 'Shop bots', 'title': 'Shop bots'}"),
        )
    ]
    assert home.json("audit", "verify")["entries"] == 7
    kept = one.log() + json.dumps(home.json("admin", "log"))
    assert admin["token"].rpartition("_")[2] not in kept


def test_people_are_invited_and_taken_away_at_the_command_line(home):
    home.json("admin", "bootstrap", *WHY)
    home.json("admin", "projects", "create", "acme", *WHY)
    invited = ("admin", "invites", "create")
    made = home.json(*invited, "bo@example.org", "--role", "owner", "--project", "acme:owner", *WHY)
    other = home.json(*invited, "cy@example.org", *WHY)
    assert (
        home.json(*invited, "x@example.org", "--role", "king", *WHY, code=2)["error"]["kind"]
        == "invalid_input"
    )
    assert home.json("admin", "invites", "delete", other["id"], *WHY)["deleted"]
    one = serving.Served(home).start()
    headers = {"Authorization": f"Bearer {made['token']}"}
    status, raw, _ = one.ask("/v1/organization/invites/accept", b'{"name": "Bo"}', headers)
    assert status == 200 and one.drain() == 0
    user = json.loads(raw)["user"]
    (listed,) = home.json("admin", "users", "list")["users"]
    assert (listed["id"], listed["role"], listed["projects"]) == (user["id"], "owner", {"acme": "owner"})
    (shown,) = home.json("admin", "invites", "list")["invites"]
    assert shown["accepted_at"] and "sha256" not in shown
    assert len(home.json("admin", "keys", "list")["keys"]) == 2
    assert home.json("admin", "users", "delete", user["id"], *WHY)["deleted"]
    assert len(home.json("admin", "keys", "list")["keys"]) == 1
    assert home.json("audit", "verify")["is_whole"]


def test_what_models_may_cost_is_said_at_the_command_line(home):
    home.json("admin", "bootstrap", *WHY)
    home.json("admin", "projects", "create", "acme", *WHY)
    for place in ((), ("acme",)):
        assert (
            home.json("admin", "spend-limit", "set", *place, "--usd", "12.5", *WHY)["threshold_cents"] == 1250
        )
        shown = home.json("admin", "spend-limit", "show", *place)
        assert (shown["threshold_cents"], shown["enforcing"]) == (1250, False)
        made = home.json(
            "admin", "spend-alerts", "create", *place, "--usd", "10", "--mail", "a@example.org", *WHY
        )
        alert = ("--alert", made["id"])
        changed = home.json("admin", "spend-alerts", "update", *place, *alert, "--usd", "11", *WHY)
        assert (changed["cents"], changed["recipients"]) == (1100, ["a@example.org"])
        assert home.json("admin", "spend-alerts", "list", *place)["alerts"] == [changed]
    limits = home.json("spend")["limits"]
    assert [(one["project"], one["limit"], one["enforcing"]) for one in limits] == [(None, 12.5, False)]
    assert home.json("admin", "spend-alerts", "delete", "acme", *alert, *WHY)["deleted"]
    assert home.json("admin", "spend-limit", "delete", "acme", *WHY)["deleted"]
    assert home.json("admin", "spend-limit", "show", "acme", code=3)["error"]["kind"] == "not_found"
    limit = home.json("admin", "limits", "set", "acme", "--of", "generate", "--tokens", "200000", *WHY)
    assert limit["tokens_per_minute"] == 200_000
    day = home.json("admin", "usage", "costs", "--days", "1", "--by", "line_item")["data"]
    assert len(day) == 1 and day[0]["results"] == []


def test_the_command_line_administers_as_http_does_and_finds_an_entry_that_was_altered(home):
    refused = home.json("admin", "bootstrap", code=2)
    assert refused["error"]["kind"] == "invalid_input"
    first = home.json("admin", "bootstrap", *WHY)
    second = home.json("admin", "keys", "create", "--name", "ci", "--expires-in", "600", *WHY)
    assert second["expires_at"] and "sha256" not in second
    assert [one["id"] for one in home.json("admin", "keys", "list")["keys"]] == [first["id"], second["id"]]
    assert home.json("admin", "keys", "delete", second["id"], *WHY)["deleted"]
    assert home.json("admin", "keys", "delete", first["id"], *WHY, code=4)["error"]["kind"] == "refused"
    assert home.json("admin", "projects", "create", "acme", *WHY)["id"] == "acme"
    assert home.json("admin", "projects", "rename", "acme", "Acme", *WHY)["name"] == "Acme"
    account = home.json("admin", "accounts", "create", "acme", "--name", "bot", *WHY)
    assert account["token"].startswith("rl_")
    (listed,) = home.json("admin", "accounts", "list", "acme")["accounts"]
    assert listed["keys"] == account["keys"]
    (key,) = home.json("keys", "list", "acme")["keys"]
    assert (key["id"], key["account"]) == (account["keys"][0], account["id"])
    home.json("admin", "limits", "set", "acme", "--of", "publish", "--requests", "5", *WHY)
    assert (
        home.json("admin", "limits", "set", "acme", "--of", "x", *WHY, code=3)["error"]["kind"] == "not_found"
    )
    own = ("admin", "limits", "set", "acme", "--key", key["id"], "--of", "publish", "--bytes", "7000", *WHY)
    assert home.json(*own)["bytes_per_minute"] == 7000
    listed = home.json("admin", "limits", "list", "acme")
    assert listed["requests_per_minute"] == {"publish": 5}
    assert listed["keys"] == {key["id"]: {"publish": {"bytes": 7000}}} and listed["taken"] == []
    assert home.json("admin", "limits", "set", "acme", "--of", "publish", *WHY)["requests_per_minute"] is None
    assert home.json("admin", "limits", "list", "acme")["requests_per_minute"] == {}
    assert home.json("admin", "accounts", "delete", "acme", "--account", account["id"], *WHY)["deleted"]
    assert home.json("admin", "projects", "archive", "acme", *WHY)["archived_at"]
    assert home.json("keys", "create", "acme", "--name", "x", *WHY, code=4)["error"]["kind"] == "refused"
    assert all(one["revoked_at"] for one in home.json("keys", "list", "acme")["keys"])
    (project,) = home.json("admin", "projects", "list")["projects"]
    assert (project["id"], project["name"]) == ("acme", "Acme")

    whole = home.json("audit", "verify")
    log = home.json("admin", "log", "-n", "3")
    assert whole["is_whole"] and whole["entries"] == log["total"] == 12
    assert [one["type"] for one in log["entries"]] == [
        *("project.archived", "service_account.deleted", "rate_limit.updated"),
    ]
    assert {one["reason"] for one in log["entries"]} == {"a test"}
    assert home.json("audit", "verify", "--expect", whole["tip"])["is_whole"]
    assert home.json("audit", "verify", "--expect", "3:00", code=6)["problems"]
    assert home.json("audit", "check", code=2)["error"]["kind"] == "invalid_input"
    assert home.json("verify")["ok"]
    (entry,) = home.root.glob("store/_operations/admin/log/000000000004-*")
    entry.chmod(0o600)
    entry.write_bytes(entry.read_bytes().replace(b"a test", b"a jest"))
    found = home.json("audit", "verify", code=6)
    assert not found["is_whole"] and "000000000004" in found["problems"][0]
    assert (
        home.json("verify", code=6)["problems"][0]["invariant"]
        == "the logs of what people did and of seeds are whole"
    )
