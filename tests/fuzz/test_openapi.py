"""Every operation of the OpenAPI document, with what fits it and what does not, by keys of every scope.

Goal: no answer is 5xx, each is one that the document tells of, in status, type and shape, and no header of it holds
what was asked. Method: schemathesis makes the requests from the document; half of the names in a path are then those
of a project with everything in it, so that requests come past the first look.
"""

from __future__ import annotations

import hypothesis
import pytest
import requests
import schemathesis
from hostile import examples, world
from hypothesis import strategies as st
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks

import console_pages
from lookup_service import BASE
from runlore.lookup.http import app, service
from runlore.upkeep import access, administration, organization

MODES = list(schemathesis.GenerationMode)
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES, EXAMPLES_DEEP = 2, 40
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(app.openapi()).get_all_operations()]
ORGANIZATION = "/v1/organization"
ALERT = {
    "threshold_amount": 100,
    "currency": "USD",
    "interval": "month",
    "notification_channel": {"type": "email", "recipients": ["ann@example.org"]},
}
REPLACED = ("authorization", "content-length", "accept-encoding")
"""Headers of which a request has its own. (An answer that is compressed could not be held against its shape.)"""
TAGS = sorted({operation.tags[0] for operation in OPERATIONS})


NOTHING_TO_GET_WRONG = {"GET /livez", "GET /readyz", "POST /v1/organization/invites/accept"}
"""What takes nothing of which there could be a wrong one (of an invitation's body each wrong one is refused alike)."""


@schemathesis.serializer("application/x-tar")
def _as_it_is(ctx, value):
    return ctx.to_bytes(value) if hasattr(ctx, "to_bytes") else value


async def filled(one):
    """The headers that requests come with, and for each parameter of a path what is there."""
    keys = [await one.key(scope=scope) for scope in access.SCOPES]
    await console_pages.filled(one, keys[-1])
    seed = (await one.get("memories/support/seed?session_id=conv", headers=keys[0])).json()["seed"]
    snapshot = (await one.get("snapshots/conv", headers=keys[0])).json()["snapshot"]
    erased = {"run": "run-5", "reason": "a test", "snapshots": "keep"}
    erasure = (await one.post("erasures", erased, status=202, headers=keys[-1]))["id"]
    owner = organization.Person(id="ann@desk", name="ann", created_at="2026-01-01T00:00:00+00:00")
    hand = administration.Administrator(one.store, {"user": "ann@desk"})
    _, token = await hand.create_admin_key("first", owner=owner)
    admin = {"Authorization": f"Bearer {token}"}
    made = await one.post("projects", {"name": "shop"}, status=200, prefix=ORGANIZATION, headers=admin)
    account = await one.post(
        f"projects/{made['id']}/service_accounts",
        {"name": "bot"},
        status=200,
        prefix=ORGANIZATION,
        headers=admin,
    )
    invited = {"email": "bo@example.org", "role": "reader"}
    invite = await one.post("invites", invited, status=200, prefix=ORGANIZATION, headers=admin)
    alert = await one.post("spend_alerts", ALERT, status=200, prefix=ORGANIZATION, headers=admin)
    names = {
        "memory": ["support"],
        "n": ["head", "1", "2", "999999999"],
        "path": ["MEMORY.md", "memory_summary.md", "src/main.py", "src", "large.txt", "memories/MEMORY.md"],
        "rollout": ["conv", "conv-1"],
        "run": ["run-1", "run-5", "run-20"],
        "snapshot": ["conv", "conv-1", snapshot, snapshot[:12]],
        "seed": [seed],
        "erasure": [erasure],
        "project_id": [made["id"], "acme"],
        "account_id": [account["id"]],
        "key_id": [account["api_key"]["id"]],
        "rate_limit_id": ["rl-seed", "rl-publish", "rl-read", "rl-generate"],
        "user_id": ["ann@desk"],
        "invite_id": [invite["id"]],
        "alert_id": [alert["id"]],
    }
    return [*keys, admin, {}], names


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    with world(tmp_path_factory.mktemp("openapi"), filled, with_keys=True) as found:
        yield found


@pytest.mark.parametrize("tag", TAGS)
def test_every_answer_is_one_that_the_document_tells_of(attacked, tag):
    for operation in OPERATIONS:
        for mode in MODES if operation.tags[0] == tag else ():
            is_negative = mode is schemathesis.GenerationMode.NEGATIVE
            if not (is_negative and operation.label in NOTHING_TO_GET_WRONG):
                attack(attacked, operation, mode)


def attack(attacked, operation, mode):
    """Ask for one operation as often as the profile says."""
    keys, names = attacked.filled
    administers = operation.path.startswith(ORGANIZATION)
    # Mostly a key that opens it: the others are refused before anything is read.
    good = keys[3:4] * 4 if administers else keys[2:3] * 4

    @examples(EXAMPLES, EXAMPLES_DEEP)
    @hypothesis.given(operation.as_strategy(generation_mode=mode), st.data())
    def once(case, data):
        for name in case.path_parameters or ():
            if name == "project":
                case.path_parameters[name] = "acme"
            elif data.draw(st.booleans(), label=f"{name} is there"):
                case.path_parameters[name] = data.draw(st.sampled_from(names[name]), label=name)
        if "wait_seconds" in (query := case.query or {}) and fits(query["wait_seconds"]):
            query["wait_seconds"] = 0.001  # Nothing comes while it waits.
        headers = data.draw(st.sampled_from([*good, *keys]), label="key")
        answer = sent(attacked, case, headers)
        case.validate_response(answer, checks=CHECKS)
        assert answer.status_code < 500 or answer.json()["kind"] == "wait_timeout", answer.text
        for name, values in answer.headers.items():
            assert not set("\r\n\0") & set("".join(values)), (name, values)

    once()


def fits(seconds):
    return isinstance(seconds, int | float) and 0 <= seconds <= service.WAIT_SECONDS_MAX


def sent(attacked, case, headers):
    """The answer to a case, as its checks take it."""
    given = case.as_transport_kwargs(base_url=BASE)
    asked = requests.Request(**given).prepare()
    body = asked.body if isinstance(asked.body, bytes | None) else asked.body.encode()
    kept = {name: value for name, value in asked.headers.items() if name.lower() not in REPLACED}
    got = attacked.ask(asked.method, asked.path_url, headers={**kept, **headers}, body=body or b"")
    told = {}
    for name, value in got.headers:
        told.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return Response(got.status, told, got.body, asked, 0.0, False)
