"""An invitation is mailed where there is a mail server, else handed on, and stands whatever the mail does.

Over HTTP with the official client, by the command line, and by the page where it is accepted.
"""

from __future__ import annotations

import contextlib
import json
import re

import openai
import pytest
from typer.testing import CliRunner

import mails
from lookup_service import served
from runlore.cli import main
from runlore.upkeep import administration, invitations, mail, organization

PUBLIC = "https://lore.example.org"
ACCEPT = "/v1/organization/invites/accept"
ANN = organization.Person(id="ann@host", name="ann", created_at="2026-01-01T00:00:00+00:00")


def post_by(box, public_url=PUBLIC):
    relay = mail.Relay("127.0.0.1", box.port, "lore@example.org", security="none", timeout_seconds=5)
    return invitations.Post(relay, public_url)


@contextlib.asynccontextmanager
async def inviting(tmp_path, post=None):
    """(a service, `invites` of the official client, of an admin key)."""
    more = {"post": post} if post else {}
    async with served(tmp_path, with_keys=True, **more) as one:
        hand = administration.Administrator(one.store, {"user": "ann@host"})
        _, admin = await hand.create_admin_key("first", owner=ANN)
        client = openai.AsyncOpenAI(
            api_key="none", admin_api_key=admin, base_url=f"{one.client.base_url}/v1", http_client=one.client
        )
        yield one, client.admin.organization.invites


def token_in(made):
    (sender, to, message) = made
    text = message.get_content().replace("\r\n", "\n")
    assert (sender, to) == ("lore@example.org", ["bo@example.org"])
    return re.search(r"rli_[0-9a-f]{32}_[0-9a-f]{64}", text)[0], text


async def resent(invites, invite_id):
    """The official client asks for a route that it has no method of."""
    return await invites._client.post(
        f"/organization/invites/{invite_id}/resend",
        cast_to=dict,
        options={"security": {"admin_api_key_auth": True}},
    )


async def accepted(one, token, *, status=200):
    headers = {"Authorization": f"Bearer {token}"}
    answer = await one.client.post(ACCEPT, json={"name": "Bo"}, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_an_invitation_is_mailed_with_a_link_and_nobody_but_its_reader_has_the_token(tmp_path):
    with mails.server() as box:
        async with inviting(tmp_path, post_by(box)) as (one, invites):
            made = await invites.with_raw_response.create(email="bo@example.org", role="reader")
            assert made.headers["runlore-invite-mail"] == "sent" and "runlore-invite" not in made.headers
            token, text = token_in(box.mails[0])
            assert f"{PUBLIC}/invitation#{token}\n" in text and f'curl -X POST "{PUBLIC}{ACCEPT}"' in text
            assert "as reader" in text and made.parse().status == "pending"
            assert (await accepted(one, token))["user"]["email"] == "bo@example.org"


async def test_without_a_public_address_the_mail_has_the_command_alone(tmp_path):
    with mails.server() as box:
        async with inviting(tmp_path, post_by(box, "")) as (_, invites):
            await invites.create(email="bo@example.org", role="owner")
            _, text = token_in(box.mails[0])
            assert (
                f'curl -X POST "$RUNLORE_URL{ACCEPT}"' in text
                and "#rli_" not in text
                and "everything" in text
            )


async def test_without_a_mail_server_the_token_is_answered_as_it_always_was(tmp_path):
    async with inviting(tmp_path) as (one, invites):
        made = await invites.with_raw_response.create(email="bo@example.org", role="reader")
        assert made.headers["runlore-invite-mail"] == "not mailed"
        await accepted(one, made.headers["runlore-invite"])


@pytest.mark.parametrize(
    ("answers", "kind"),
    [({"RCPT": ["550 5.1.1 no"]}, "mail_refused"), ({"DATA": ["hangs up"]}, "mail_unavailable")],
    ids=["refused", "lost"],
)
async def test_a_mail_that_fails_leaves_the_invitation_says_so_and_another_token_can_be_sent(
    tmp_path, answers, kind
):
    with mails.server(**answers) as box:
        async with inviting(tmp_path, post_by(box)) as (one, invites):
            made = await invites.with_raw_response.create(email="bo@example.org", role="reader")
            assert made.headers["runlore-invite-mail"].startswith(f"failed: {kind}: ")
            first, invite_id = made.headers["runlore-invite"], made.parse().id
            (listed,) = [row async for row in invites.list()]
            assert (listed.id, listed.status) == (invite_id, "pending")

            assert (await resent(invites, invite_id))["id"] == invite_id and len(box.mails) == 1
            await accepted(one, first, status=401)
            token, _ = token_in(box.mails[0])
            await accepted(one, token)
            with pytest.raises(openai.ConflictError):
                await resent(invites, invite_id)


async def test_an_address_that_no_mail_can_go_to_is_told_and_the_invitation_stands(tmp_path):
    with mails.server() as box:
        async with inviting(tmp_path, post_by(box)) as (_, invites):
            made = await invites.with_raw_response.create(email="bö@example.org,x", role="reader")
            assert made.headers["runlore-invite-mail"].startswith("failed: invalid_input: ")
            assert "runlore-invite" in made.headers and not box.asked


async def test_one_that_was_taken_back_or_is_there_anew_can_not_be_sent_again(tmp_path):
    async with inviting(tmp_path) as (_, invites):
        made = await invites.create(email="bo@example.org", role="reader")
        await invites.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await resent(invites, made.id)


def test_the_command_mails_shows_the_token_where_it_can_not_and_sends_anew(tmp_path):
    with mails.server(RCPT=["550 5.1.1 no"]) as box:
        settings = {
            "RUNLORE_SMTP_HOST": "127.0.0.1",
            "RUNLORE_SMTP_PORT": str(box.port),
            "RUNLORE_SMTP_SECURITY": "none",
            "RUNLORE_SMTP_FROM": "lore@example.org",
            "RUNLORE_PUBLIC_URL": PUBLIC + "/",
        }

        def run(*words, env=settings):
            given = ["admin", "invites", *words, "--home", str(tmp_path), "--reason", "joins"]
            done = CliRunner().invoke(main.app, given, env=env)
            assert done.exit_code == 0, done.output
            return done

        CliRunner().invoke(main.app, ["admin", "bootstrap", "--home", str(tmp_path), "--reason", "x"])
        made = json.loads(run("create", "bo@example.org", "--json").stdout)
        assert (made["mail"], made["problem"]["kind"]) == ("failed", "mail_refused") and made["token"]
        told = run("resend", made["id"]).stdout
        assert told.startswith("mailed to bo@example.org") and "rli_" not in told
        assert token_in(box.mails[0])[0] != made["token"]
        shown = run("resend", made["id"], env={**settings, "RUNLORE_SMTP_HOST": ""}).stdout
        assert shown.startswith(f"{PUBLIC}/invitation#rli_")
        wrong = CliRunner().invoke(
            main.app,
            ["admin", "invites", "create", "cy@example.org", "--home", str(tmp_path), "--reason", "x"],
            env={**settings, "RUNLORE_SMTP_FROM": "no address"},
        )
        assert wrong.exit_code == 2
        rows = CliRunner().invoke(main.app, ["admin", "invites", "list", "--home", str(tmp_path), "--json"])
        assert [row["email"] for row in json.loads(rows.stdout)["invites"]] == ["bo@example.org"]
