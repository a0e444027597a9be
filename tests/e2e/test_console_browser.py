"""The console in a real browser: what it looks like on a phone and in the dark, without a script, by keyboard; and
that nothing which others wrote runs, or loads anything."""

from __future__ import annotations

import asyncio
import contextlib

import httpx2
import pytest

import browser
import made
from console_pages import HOSTILE, HTML, crawled, filled, whole
from lookup_service import Served, listening
from runlore.consumers import dead
from runlore.testing.stores import MemoryStore
from runlore.upkeep import access, administration, audit, organization, people

pytestmark = pytest.mark.process

PHONE = 360
WIDE = "document.documentElement.scrollWidth"
# Text that is too faint to be read: its words, and its contrast (WCAG 2, 1.4.3) against what is behind it.
FAINT = """(() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const light = ([r, g, b]) => {
    const part = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility() || one.closest(".only-read, title")) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${one.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found.slice(0, 5);
})()"""


@contextlib.asynccontextmanager
async def served(tmp_path, **more):
    """A service on a port, with a client."""
    async with (
        listening(tmp_path, MemoryStore(), **more) as (service, url, _),
        httpx2.AsyncClient(base_url=url) as client,
    ):
        yield Served(service, client, None), url


ADMINISTRATION = [
    f"/administration{place}"
    for place in ("", "/projects/acme", "/people", "/keys", "/audit?verify=true", "/audit?log=acts")
]


async def organized(one):
    """An admin key of a deployment with something on each page that administers."""
    hand = administration.Administrator(one.store, {"user": "ann@host"}, "setting up " + "x" * 100)
    owner = organization.Person(id="ann@host", name="ann", created_at="2026-01-01T00:00:00+00:00")
    _, admin = await hand.create_admin_key("first", owner=owner)
    account = await hand.create_account("acme", "a" * 100)
    await hand.create_key("acme", account.id, "key", expires_in_seconds=60)
    _, token = await people.invite(hand, "bo@example.org", role="reader", projects={"acme": "owner"})
    await people.accept(hand, token, "B" * 100)
    await people.invite(hand, f"{'c' * 60}@example.org", role="owner", projects={})
    async with audit.acting(one.store, by={"user": "u" * 60, "host": "h"}, what="pause", projects=["acme"]):
        pass
    return admin


async def shown(tmp_path, work, *args):
    """`work` with a browser, on a thread: the service goes on meanwhile."""

    def run():
        with browser.browser(tmp_path) as made_browser:
            return work(made_browser, *args)

    return await asyncio.to_thread(run)


async def hostile(one):
    """A run and a workspace whose every word tries to do something."""
    for number, text in enumerate(
        (HOSTILE, "[x](javascript:alert(1)) ![i](http://evil.example/i.png)", "x" * 5000)
    ):
        record = made.payload(90 + number, text=text, final=text)
        await one.client.post(
            "/v1/projects/acme/events", json=made.data(90 + number, rollout=text[:90], record=record)
        )
    await one.work()


async def test_every_kind_of_page_fits_a_phone_is_readable_in_the_dark_and_runs_nothing_of_others(tmp_path):
    async with served(tmp_path) as (one, url):
        await filled(one)
        await hostile(one)
        paths = sorted((await crawled(one, "/", most=2))[0])
        admin = await organized(one)

        def look(seen):
            for options in ({"width": PHONE, "height": 740}, {"dark": True}):
                page = seen.page(**options)
                page.run("window.alert = () => { throw new Error('it ran'); }")
                for path in paths:
                    page.go(url + path)
                    if "width" in options:
                        assert page.run(WIDE) <= PHONE, path
                    assert page.run(FAINT) == [], path
                assert page.complaints() == []
            told = [
                event["params"] for event in seen.events if event.get("method") == "Network.requestWillBeSent"
            ]
            asked = [one["request"]["url"] for one in told]
            # The browser draws the calendar of a date's field from itself; a page's own `data:` its policy refuses.
            assert asked and not [one for one in asked if not one.startswith((url, "data:image/svg+xml"))]
            assert not [
                event for event in seen.events if event.get("method") == "Page.javascriptDialogOpening"
            ]
            page.go(url + "/")
            page.go(url + "/sign-in")
            page.type(admin)
            page.enter()
            for path in ADMINISTRATION:
                page.go(url + path)
                assert page.run(FAINT) == [], path
                page.resize(PHONE, 740)
                page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
                assert page.run(WIDE) <= PHONE, path
                page.resize(1280, 900)
            assert page.complaints() == []
            page.go(url + "/")
            dark = page.run("getComputedStyle(document.body).backgroundColor")
            light = seen.page()
            light.go(url + "/")
            assert light.run("getComputedStyle(document.body).backgroundColor") != dark

        await shown(tmp_path, look)


async def test_by_keyboard_and_without_a_script_one_signs_in_redrives_and_signs_out(tmp_path):
    async with served(tmp_path, with_keys=True) as (one, url):
        await filled(one, await one.key())
        token = (await one.key())["Authorization"].partition(" ")[2]

        def work(seen):
            page = seen.page(width=PHONE, height=740, script=False)
            page.go(f"{url}/projects/acme/dead")
            # It asks for the key, and the field has the focus: type, Enter.
            page.type(token)
            page.enter()
            assert page.path() == "/projects/acme/dead"
            page.key("Tab")
            assert page.focused() == "Skip to the content"
            page.key("Enter", "\r")
            page.follow_first("tbody a")
            page.focus("#reason")
            page.type("the producer is mended")
            page.enter()
            assert page.path() == "/projects/acme/dead?done=redriven"
            assert page.cookies() == ["runlore_session"]
            page.focus(".who button")
            page.enter()
            assert page.path() == "/sign-in" and page.cookies() == []
            page.go(f"{url}/projects/acme")
            assert page.path().startswith("/sign-in")
            return page.complaints()

        await shown(tmp_path, work)
        (letter,) = await dead.read_all(one.bus)
        assert letter.resolution == "redriven" and letter.resolved_why == "the producer is mended"


async def test_a_form_on_another_site_changes_nothing_and_no_script_reads_the_session(tmp_path):
    async with served(tmp_path, with_keys=True) as (one, url):
        await filled(one, await one.key())
        key = await one.key()
        (letter,) = await dead.read_all(one.bus)

        def work(seen):
            page = seen.page()
            page.go(f"{url}/sign-in")
            page.type(key["Authorization"].partition(" ")[2])
            page.enter()
            assert page.path() == "/projects/acme" and page.run("document.cookie") == ""
            page.key("/", "/")
            page.go(f"{url}/projects/acme/runs")
            page.key("/", "/")
            assert page.run("document.activeElement.type") == "search"
            action = f"{url}/projects/acme/dead/{letter.id}/redrive"
            form = f"<form method=post action='{action}'><input name=reason value=x><input type=submit id=go></form>"
            page.go(f"data:text/html,{form}")
            page.click("#go")
            return page.run("document.querySelector('code')?.textContent")

        assert await shown(tmp_path, work) in ("unauthorized", "forbidden")
        assert [letter.resolution for letter in await dead.read_all(one.bus)] == [None]
        assert len(await access.list_all(one.store, "acme")) == 2
        whole(await one.client.get("/sign-in", headers=HTML))


async def test_whoever_is_invited_follows_the_link_accepts_and_signs_in_and_no_server_sees_the_token_in_an_address(
    tmp_path,
):
    async with served(tmp_path, with_keys=True) as (one, url):
        hand = administration.Administrator(one.store, {"user": "ann@host"}, "setting up")
        _, token = await people.invite(hand, "bo@example.org", role="owner", projects={})

        def work(seen):
            page = seen.page(width=PHONE, height=740)
            page.go(f"{url}/invitation#{token}")
            assert page.path() == "/invitation"
            page.type("Bo")
            page.enter()
            key = page.run("document.querySelector('#value').value")
            page.click("main p a")
            page.type(key)
            page.enter()
            assert page.path() == "/administration"
            asked = [
                each["params"]["request"]
                for each in seen.events
                if each.get("method") == "Network.requestWillBeSent"
            ]
            assert not [
                each["url"] for each in asked if token in each["url"] + each["headers"].get("Referer", "")
            ]
            assert page.complaints() == []

        await shown(tmp_path, work)
        (user,) = (await administration.read(one.store)).users.values()
        assert user.name == "Bo"
