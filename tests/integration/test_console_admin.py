"""The console's pages of whoever administers: who may open and change what, values shown once, invitations, the log."""

from __future__ import annotations

import contextlib
import html
import json
import re

import pytest

import mails
from console_pages import (
    HTML,
    ROUTES,
    address,
    filled,
    page,
    sign_in,
    signed_in,
    the_letter,
    whole,
    without_tokens,
)
from lookup_service import served
from runlore import clock, errors
from runlore.commit import keys
from runlore.lookup.http.console import auditing, sessions
from runlore.upkeep import (
    access,
    administration,
    adminlog,
    allotments,
    audit,
    invitations,
    mail,
    organization,
    people,
    seedwriter,
)

ANN = organization.Person(id="ann@host", name="ann", created_at="2026-01-01T00:00:00+00:00")
OF_ADMINISTRATION = [
    (method, one)
    for one in ROUTES
    if one.path.startswith("/administration")
    for method in one.methods
    if method != "HEAD"
]
INSIDE = "/projects/{project_id}/"
HOSTILE = "<script>alert(1)</script>\"'&\u202e"


class Desk:
    """Somebody who is signed in with an admin key: what they see, and the forms that they send."""

    def __init__(self, one, headers, token):
        self.one, self.headers, self.token = one, headers, token

    async def page(self, path, **more):
        return await page(self.one, path, headers=self.headers, **more)

    async def words(self, path, **more):
        return " ".join(" ".join((await self.page(path, **more)).words).split())

    async def send(self, path, *, on="/administration", status=303, **fields):
        """Send a form of the page `on`; the answer, whose token is taken from there."""
        seen = await self.page(on)
        data = {"token": seen.token(), "reason": "as the test says", **fields}
        answer = await self.one.client.post(path, data=data, headers=self.headers)
        assert answer.status_code == status, (path, answer.status_code, answer.text[:800])
        return answer

    async def value(self, path, **more):
        """What the answer to a form shows this once."""
        answer = await self.send(path, status=200, **more)
        return html.unescape(re.search(r'id="value"[^>]* value="([^"]*)"', whole(answer) and answer.text)[1])

    async def org(self):
        return await administration.read(self.one.store)


async def signed_in_as_admin(one, token):
    answer = await sign_in(one, token)
    assert answer.status_code == 303 and answer.headers["location"] == "/administration", answer.text[:500]
    return Desk(one, {**HTML, "Cookie": answer.headers["set-cookie"].partition(";")[0]}, token)


@contextlib.asynccontextmanager
async def noting(service):
    """Every seed that the service hands out is in the log."""
    service.seed_log = seedwriter.Writer(service.store, by={"user": "lore", "host": "build-8"})
    try:
        yield
    finally:
        await service.seed_log.close()


def rows_of(answer):
    """The entries of an audit page: who, what, [project,] why and of what."""
    whole(answer)
    body = answer.text.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in body.split("<tr>")[1:]]
    return [tuple(" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in row[1:]) for row in rows]


def hand(one):
    return administration.Administrator(one.store, {"user": "ann@host"}, "setting up")


async def admin_key(one):
    return (await hand(one).create_admin_key("first", owner=ANN))[1]


async def joined(one, email, *, role="reader", projects=()):
    """A desk of a new user."""
    _, invited = await people.invite(hand(one), email, role=role, projects=dict(projects))
    user, _, token = await people.accept(hand(one), invited, email[:2])
    return user, await signed_in_as_admin(one, token)


@contextlib.asynccontextmanager
async def administered(tmp_path, **more):
    """(a service, the desk of its first admin key, who may do everything)."""
    async with served(tmp_path, **({"with_keys": True} | more)) as one:
        yield one, await signed_in_as_admin(one, await admin_key(one))


def asked(route):
    given = {"project_id": "acme", "account_id": "a", "key_id": "0" * 32, "user_id": "user-x"}
    filled = {**given, "invite_id": "0" * 32, "what": "seed"}
    return re.sub(r"\{([^}]+)\}", lambda found: filled[found[1]], route.path)


# --- who may --------------------------------------------------------------------------------------------------------


async def test_admin_keys_open_no_page_of_a_project_and_keys_of_projects_no_page_that_administers(tmp_path):
    async with administered(tmp_path) as (one, desk):
        await hand(one).create_project("acme")
        data = await signed_in(one, "admin")
        cookie = desk.headers["Cookie"]
        wrong = {**HTML, "Cookie": cookie[:-1] + ("A" if cookie[-1] != "A" else "B")}
        assert len(OF_ADMINISTRATION) > 20
        for method, route in OF_ADMINISTRATION:
            for headers in (HTML, wrong):
                answer = await one.client.request(method, asked(route), headers=headers)
                if method == "GET":
                    assert answer.headers["location"].startswith("/sign-in?next=%2Fadministration"), (
                        route.path
                    )
                else:
                    assert answer.status_code == 401, route.path
            answer = await one.client.request(method, asked(route), headers=data)
            assert answer.status_code == 403 and "administers nothing" in answer.text, route.path
            if method == "POST":
                # A form without its token changes nothing, whoever sends it.
                answer = await one.client.post(asked(route), data={"reason": "x"}, headers=desk.headers)
                assert answer.status_code == 403 and "not one of this session" in answer.text, route.path
        for method, route in [
            (m, r) for r in ROUTES if "{project}" in r.path for m in r.methods if m != "HEAD"
        ]:
            told = [
                await one.client.request(method, address(route, name), headers=desk.headers)
                for name in ("acme", "no")
            ]
            for answer in told:
                assert answer.status_code == 403 and "opens no project" in answer.text, route.path
                assert without_tokens(answer.text) == without_tokens(told[0].text)
        assert (await administration.read(one.store)).tip.number == 2


async def test_a_session_of_an_admin_key_ends_with_the_key_and_is_no_session_of_a_project(
    tmp_path, monkeypatch
):
    async with administered(tmp_path) as (one, desk):
        assert (await one.client.get("/", headers=desk.headers)).headers["location"] == "/administration"
        assert (await one.client.get("/v1/organization/projects", headers=desk.headers)).status_code == 401
        made = (await administration.read(one.store)).admin_keys
        _, other = await hand(one).create_admin_key("other", owner=ANN)
        second = await signed_in_as_admin(one, other)
        await desk.send(f"/administration/keys/{next(iter(made))}/end", on="/administration/keys")
        gone = await one.client.get("/administration", headers=desk.headers)
        assert gone.headers["location"].startswith("/sign-in")
        seen = await second.page("/administration")
        out = await one.client.post("/sign-out", data={"token": seen.token()}, headers=second.headers)
        assert out.headers["location"] == "/sign-in" and "Max-Age=0" in out.headers["set-cookie"]
        # What is signed for one purpose is good for no other, also where an id would be known there.
        secret = await access.secret(one.store, sessions.SIGNING)
        key = parsed[0] if (parsed := administration.parse_admin(other)) else ""
        for purpose, path in ((sessions.SESSION, "/administration"), (sessions.FORMS, "/administration")):
            cookie = sessions.sealed(secret, purpose, f"{key}.n", 60)
            headers = {**HTML, "Cookie": f"{sessions.COOKIE}={cookie}"}
            assert (await one.client.get(path, headers=headers)).status_code in (303, 401, 403)


async def test_without_keys_of_projects_administration_still_takes_an_admin_key(tmp_path):
    async with served(tmp_path) as one:
        await admin_key(one)
        assert (
            (await one.client.get("/administration", headers=HTML)).headers["location"].startswith("/sign-in")
        )
        refused = await sign_in(one, "rl_" + "0" * 32 + "_" + "0" * 64)
        assert refused.status_code == 401 and "here projects need none" in refused.text
        desk = await signed_in_as_admin(one, await admin_key(one))
        assert "New project" in await desk.words("/administration")
        assert (await one.client.get("/projects/acme", headers=desk.headers)).status_code == 200


async def test_a_reader_sees_everything_and_changes_nothing_but_inside_of_a_project_that_they_own(tmp_path):
    async with administered(tmp_path) as (one, _):
        await hand(one).create_project("acme")
        await hand(one).create_project("other")
        _, his = await joined(one, "bo@example.org", projects={"acme": "owner", "other": "member"}.items())
        for path in ("", "/people", "/keys", "/audit", "/projects/other"):
            seen = await his.page(f"/administration{path}")
            posts = [form["action"] for form in seen.forms if form["method"] == "post"]
            assert posts == ["/sign-out"], (path, posts)
        posts = [form["action"] for form in (await his.page("/administration/projects/acme")).forms]
        assert "/administration/projects/acme/accounts" in posts and not [
            one for one in posts if "rename" in one
        ]
        before = (await his.org()).tip.number
        for method, route in OF_ADMINISTRATION:
            may = INSIDE in route.path and not route.path.endswith(("/archive", "/rename"))
            if method == "POST":
                other = asked(route).replace("/acme/", "/other/")
                assert "owns" not in (await his.send(other, status=403)).text
                if not may:
                    await his.send(asked(route), status=403)
        assert (await his.org()).tip.number == before
        key = await his.value("/administration/projects/acme/accounts", name="bot")
        assert await one.client.get("/v1/projects/acme/memories", headers={"Authorization": f"Bearer {key}"})


# --- projects -------------------------------------------------------------------------------------------------------


async def test_a_project_is_made_filled_limited_and_archived_and_every_step_is_in_the_log_with_its_reason(
    tmp_path,
):
    async with administered(tmp_path) as (one, desk):
        made = await desk.send("/administration/projects", name="Acme Ltd", reason="ticket 1")
        assert made.headers["location"] == "/administration/projects/acme-ltd?done=made"
        base = "/administration/projects/acme-ltd"
        token = await desk.value(
            f"{base}/accounts", name="bot", role="owner", expires="30", reason="ticket 2"
        )
        (account,) = (await desk.org()).projects["acme-ltd"].accounts.values()
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await one.client.get("/v1/projects/acme-ltd/memories", headers=bearer)).status_code == 200
        second = await desk.value(
            f"{base}/keys", account=account.id, name="ci", scope="admin", reason="ticket 3"
        )
        assert second != token and access.parse(second)
        words = await desk.words(base)
        assert "ticket" not in words and "Last used" in words and "not yet" in words
        assert token not in words and token.rpartition("_")[2] not in str(one.store._objects)
        await desk.send(f"{base}/keys/{access.parse(second)[0]}/end")
        await desk.send(f"{base}/limits/seed", requests="60")
        assert "60" in await desk.words(base)
        await desk.send(f"{base}/limits/seed", requests="")
        await desk.send(f"{base}/limits/publish", requests="7000", bytes="8000000")
        own = {"seed": {"requests": 61}}
        await hand(one).update_key("acme-ltd", access.parse(token)[0], limits=own)
        minute = int(clock.now().timestamp() // 60)
        for turning in (minute, minute + 1):
            await allotments.take(
                one.store,
                keys.tally("acme-ltd", "publish"),
                turning,
                lambda taken: {"requests": 3, "bytes": 41},
            )
        words = await desk.words(base)
        assert "no limit" in words and "7,000 requests" in words and "8,000,000 bytes" in words
        assert "seed: 61 requests a minute" in words and "3 requests" in words and "41 bytes" in words
        await desk.send(f"{base}/accounts/{account.id}/role", role="member")
        await desk.send(f"{base}/accounts/{account.id}/delete")
        assert (await one.client.get("/v1/projects/acme-ltd/memories", headers=bearer)).status_code == 401
        await desk.send(f"{base}/rename", name="Acme & Sons")
        assert "Acme & Sons" in await desk.words(base)
        await desk.send(f"{base}/archive", status=400, name="Acme & Sons")
        await desk.send(f"{base}/archive", name="acme-ltd")
        seen = await desk.page(base)
        assert [form["action"] for form in seen.forms] == ["/sign-out"]
        log = await desk.words("/administration/audit?project=acme-ltd")
        for told in (
            "ticket 1",
            "ticket 2",
            "ticket 3",
            "project.archived",
            "service_account.deleted",
            "first",
        ):
            assert told in log, told


async def test_what_is_made_without_a_reason_or_with_fields_that_do_not_fit_is_told_so_and_not_made(tmp_path):
    async with administered(tmp_path) as (one, desk):
        await hand(one).create_project("acme")
        before = (await desk.org()).tip.number
        base = "/administration/projects/acme"
        for path, fields in (
            ("/administration/projects", {"name": "x", "reason": " "}),
            ("/administration/projects", {"name": ""}),
            (f"{base}/accounts", {"name": "bot", "expires": "31"}),
            (f"{base}/accounts", {"name": "bot", "role": "root"}),
            (f"{base}/limits/seed", {"requests": "-1"}),
            (f"{base}/limits/seed", {"requests": "many"}),
            (f"{base}/limits/publish", {"bytes": "9" * 14}),
            (f"{base}/users", {"user": "user-none", "role": "root"}),
            ("/administration/invites", {"email": "bo@example.org", "role": "root"}),
            ("/administration/invites", {"email": "no address", "role": "reader"}),
        ):
            answer = await desk.send(path, status=400, **fields)
            assert "invalid_input" in answer.text, path
        for path in (
            f"{base}/limits/none",
            f"{base}/keys/{'0' * 32}/end",
            "/administration/people/user-x/remove",
        ):
            await desk.send(path, status=404, requests="1")
        assert (await desk.org()).tip.number == before
        await desk.page("/administration/projects/nobody", status=404)


async def test_a_project_that_only_events_made_is_there_and_many_are_shown_page_by_page(tmp_path):
    async with administered(tmp_path) as (one, desk):
        await one.store.put("only-events/x", b"{}")
        assert "Made by its events" in await desk.words("/administration")
        await desk.send("/administration/projects/only-events/limits/seed", requests="5")
        assert "only-events" in (await desk.org()).projects
        for number in range(60):
            await one.store.put(f"many-{number:03}/x", b"{}")
        seen, shown = await desk.page("/administration"), []
        shown += [link for link in seen.links if "/projects/" in link]
        (following,) = [link for link in seen.links if "cursor" in link]
        shown += [link for link in (await desk.page(following)).links if "/projects/" in link]
        assert len(shown) == len(set(shown)) == 61


# --- people ---------------------------------------------------------------------------------------------------------


async def test_somebody_is_invited_by_mail_accepts_by_the_page_and_signs_in(tmp_path):
    with mails.server() as box:
        relay = mail.Relay("127.0.0.1", box.port, "lore@example.org", security="none")
        post = invitations.Post(relay, "https://lore.example.org")
        async with administered(tmp_path, post=post) as (one, desk):
            await hand(one).create_project("acme")
            sent = await desk.send(
                "/administration/invites",
                on="/administration/people",
                **{"email": "bo@example.org", "role": "reader", "project": "acme", "project_role": "owner"},
            )
            assert sent.headers["location"].endswith("done=mailed")
            token = re.search(r"/invitation#(rli_\w+)", box.mails[0][2].get_content())[1]
            form = await page(one, "/invitation")
            assert token not in str(form.words)
            fields = {"token": form.token(), "name": "Bo", "invitation": token}
            for wrong, status in (
                ({"invitation": token[:-1] + "g"}, 401),
                ({"name": ""}, 400),
                ({"token": "x"}, 403),
            ):
                answer = await one.client.post("/invitation", data={**fields, **wrong}, headers=HTML)
                whole(answer, status=status)
            answer = await one.client.post("/invitation", data=fields, headers=HTML)
            key = re.search(r'id="value"[^>]* value="([^"]*)"', answer.text)[1]
            assert whole(answer) and key.startswith("rla_")
            again = await one.client.post("/invitation", data=fields, headers=HTML)
            whole(again, status=401)
            his = await signed_in_as_admin(one, key)
            assert "owner of" not in await his.words("/administration/people")
            assert "Bo" in await his.words("/administration/people")
            assert "Bo" in await desk.words("/administration/projects/acme")


async def test_without_mail_or_where_it_fails_the_link_is_shown_once_and_can_be_made_anew_and_taken_back(
    tmp_path,
):
    with mails.server(RCPT=["550 5.1.1 no"]) as box:
        relay = mail.Relay("127.0.0.1", box.port, "lore@example.org", security="none")
        async with administered(tmp_path, post=invitations.Post(relay)) as (one, desk):
            there = {"email": "bo@example.org", "role": "owner"}
            answer = await desk.send("/administration/invites", status=200, **there)
            assert "mail_refused" in answer.text and "The invitation stands" in answer.text
            (waiting,) = (await desk.org()).invites
            resent = await desk.send(f"/administration/invites/{waiting}/resend")
            assert resent.headers["location"].endswith("done=mailed")
            one.service.post = invitations.Post()
            link = await desk.value(f"/administration/invites/{waiting}/resend")
            assert people.parse_invite(link.rpartition("#")[2])
            await desk.send(f"/administration/invites/{waiting}/withdraw")
            assert "No invitation waits" in await desk.words("/administration/people")


async def test_users_get_roles_and_go_and_the_last_one_who_administers_stays(tmp_path):
    async with administered(tmp_path) as (one, desk):
        user, his = await joined(one, "bo@example.org")
        await desk.send(f"/administration/people/{user.id}/role", role="owner")
        assert "New project" in await his.words("/administration")
        await hand(one).create_project("acme")
        await his.send("/administration/projects/acme/users", user=user.id, role="member")
        await his.send("/administration/projects/acme/users", user=user.id, role="owner")
        await his.send(f"/administration/projects/acme/users/{user.id}/remove")
        first = next(name for name, key in (await desk.org()).admin_keys.items() if key.name == "first")
        await his.send(f"/administration/keys/{first}/end")
        locked = await his.send(f"/administration/people/{user.id}/remove", status=409)
        assert "nobody could administer" in locked.text
        token = await his.value("/administration/keys", name="terraform", expires="365")
        words = await (await signed_in_as_admin(one, token)).words("/administration/keys")
        assert "terraform" in words and "yours, in use" in words


async def test_acts_and_seeds_are_shown_to_whoever_administers_and_to_the_admin_key_of_their_project_alone(
    tmp_path,
):
    async with served(tmp_path, with_keys=True) as one, noting(one.service):
        desk = await signed_in_as_admin(one, await admin_key(one))
        key = await one.key()
        await filled(one, key)
        await one.get("memories/support/seed", params={"session_id": "conv-1"}, headers=key)
        his, reader, other = (
            await signed_in(one),
            await signed_in(one, "read"),
            await signed_in(one, "admin", "other"),
        )
        seen = await page(one, await the_letter(one, his), headers=his)
        action = next(form["action"] for form in seen.forms if "redrive" in form["action"])
        await one.client.post(action, data={"token": seen.token(), "reason": "mended"}, headers=his)
        by = {"user": "ann", "host": "build-7"}
        several = {
            "projects": ["acme", "secret-one"],
            "arguments": {"memory": "secret-two"},
            "reason": "secret-three",
        }
        async with audit.acting(one.store, by=by, what="pause", **several):
            pass
        with pytest.raises(errors.Refused):
            async with audit.acting(
                one.store, by=by, what="revert", projects=["acme"], reason="back", arguments={"to": 4}
            ):
                raise errors.Refused("there is no revision 4")
        await hand(one).limit("acme", "seed", {"requests": 7})

        for path, headers in (("/administration/audit", desk.headers), ("/projects/acme/audit", his)):
            acts = rows_of(await one.client.get(path, params={"log": "acts"}, headers=headers))
            assert [row[1] for row in acts] == ["revert failed", "pause", "dead redrive"], path
            assert (
                "back" in acts[0][-1] and "there is no revision 4" in acts[0][-1] and "mended" in acts[2][-1]
            )
            seeds = rows_of(await one.client.get(path, params={"log": "seeds"}, headers=headers))
            assert len(seeds) == 1 and "support revision 6" in seeds[0][-1] and "conv-1" in seeds[0][-1]
        mine = await one.client.get("/projects/acme/audit?log=acts", headers=his)
        assert "secret" not in mine.text and "build-7" not in mine.text and "several projects" in mine.text
        every = await one.client.get("/administration/audit?log=acts", headers=desk.headers)
        assert "secret-three" in every.text and "ann@build-7" in every.text
        changes = rows_of(await one.client.get("/projects/acme/audit", headers=his))
        assert [row[1] for row in changes] == ["rate_limit.updated"] and "ann" in changes[0][0]
        for log in ("changes", "acts", "seeds"):
            path = f"/projects/other/audit?log={log}"
            assert rows_of(await one.client.get(path, headers=other)) == []
            assert (
                await one.client.get(f"/projects/acme/audit?log={log}", headers=reader)
            ).status_code == 403
        assert (
            len(
                rows_of(
                    await one.client.get(
                        "/administration/audit?log=acts&project=secret-one", headers=desk.headers
                    )
                )
            )
            == 1
        )


# --- the audit log ----------------------------------------------------------------------------------------------------


async def test_the_log_is_filtered_by_project_type_actor_and_day_page_by_page_and_whole(
    tmp_path, monkeypatch
):
    async with administered(tmp_path) as (one, desk):
        user, _ = await joined(one, "bo@example.org", role="owner")
        for name in ("acme", "other"):
            await hand(one).create_project(name)
        for number in range(4):
            await hand(one).limit("acme", "seed", {"requests": number})

        async def shown(**query):
            return rows_of(
                await desk.one.client.get("/administration/audit", params=query, headers=desk.headers)
            )

        every = await shown()
        assert len(every) == (await desk.org()).tip.number and every[0][1:3] == ("rate_limit.updated", "acme")
        assert (
            len(await shown(project="acme")) == 5 and len(await shown(project="acme", type="rate_limit")) == 4
        )
        assert len(await shown(type="project.created")) == 2 and len(await shown(actor=user.id)) == 3
        today = clock.now().date().isoformat()
        assert await shown(**{"from": today, "to": today}) == every
        assert await shown(to="2020-01-01") == [] == await shown(**{"from": "2999-01-01"})
        await desk.page("/administration/audit?from=soon", status=400)
        await desk.page("/administration/audit?log=none", status=400)

        monkeypatch.setattr(auditing, "ENTRIES_SHOWN", 3)
        path, got = "/administration/audit?project=acme", []
        while path:
            answer = await one.client.get(path, headers=desk.headers)
            got += rows_of(answer)
            path = next((link for link in whole(answer).links if "cursor" in link), None)
        assert got == [row for row in every if row[2] == "acme"]
        monkeypatch.setattr(auditing, "LOOKED_MAX", 4)
        seen = await desk.page("/administration/audit?type=invite.sent")
        assert "Looked back to" in " ".join(seen.words) and [link for link in seen.links if "cursor" in link]

        assert "Every log is whole" in await desk.words("/administration/audit?verify=true")
        entry = next(key for key in one.store._objects if key.startswith(keys.log()) and "000002-" in key)
        body = json.loads((await one.store.get(entry)).body)
        one.store._objects.pop(entry)
        await one.store.put(entry, json.dumps({**body, "reason": "another"}).encode())
        monkeypatch.setattr(auditing, "ENTRIES_SHOWN", 50)
        monkeypatch.setattr(auditing, "LOOKED_MAX", 500)
        one.client._transport.app.state.log_entries = adminlog.Kept()
        answer = await one.client.get("/administration/audit", headers=desk.headers)
        assert rows_of(answer) == every[:-2] and "Nothing before this can be told" in answer.text
        assert "not as they were written" in await desk.words("/administration/audit?verify=true")


async def test_names_and_reasons_of_others_do_nothing_on_any_of_these_pages(tmp_path):
    async with administered(tmp_path) as (one, desk):
        await desk.send("/administration/projects", name=HOSTILE[:-1], reason=HOSTILE)
        (project,) = (await desk.org()).projects
        base = f"/administration/projects/{project}"
        await desk.value(f"{base}/accounts", name=HOSTILE[:-1], reason=HOSTILE)
        _, invited = await people.invite(hand(one), "<b>@x", role="reader", projects={project: "member"})
        await people.accept(hand(one), invited, HOSTILE[:-1])
        await people.invite(hand(one), '"><script>@x', role="reader", projects={})
        for path in ("", "/people", "/keys", "/audit", f"/projects/{project}"):
            # `whole` looks for what would run.
            words = await desk.words(f"/administration{path}")
            assert "\u202e" not in words
        assert "‹U+202E›" in await desk.words("/administration/audit")


async def test_a_store_that_lets_this_process_change_nothing_is_told_as_that(tmp_path, monkeypatch):
    async with administered(tmp_path) as (_, desk):

        async def refused(*_, **__):
            raise errors.Blocked("the store refuses")

        monkeypatch.setattr(adminlog, "put", refused)
        answer = await desk.send("/administration/projects", name="x", status=503)
        assert "the store refuses" in answer.text
