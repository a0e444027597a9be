"""A browser's view of the console in-process: pages that must be whole, a project with everything in it, signing in."""

from __future__ import annotations

import html.parser
import re
import urllib.parse

import made
from lookup_service import tar
from runlore.commit import lines
from runlore.consumers import record
from runlore.lookup.http.console import app as console
from runlore.lookup.http.console import pages
from runlore.upkeep import access

HTML = {"Accept": "text/html,application/xhtml+xml"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
HOME = "/projects/acme"


class Seen(html.parser.HTMLParser):
    """What a browser would make of a page: its links, forms, ids, headings, and what would run."""

    def __init__(self, text):
        super().__init__()
        self.links, self.forms, self.ids, self.headings, self.wrong, self.words = [], [], [], [], [], []
        self.labels, self.fields = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.wrong += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag in ("iframe", "object", "embed", "base", "style", "meta") and "http-equiv" in given:
            self.wrong.append(tag)
        if tag == "script" and not given.get("src", "").startswith("/static/"):
            self.wrong.append("script")
        if tag == "img" and not given.get("src", "").startswith("/static/"):
            self.wrong.append(f"img {given}")
        for name in ("href", "src", "action"):
            if urllib.parse.urlsplit(given.get(name) or "").scheme not in ("", "http", "https", "mailto"):
                self.wrong.append(f"{tag} {given[name]}")
        if tag == "a":
            self.links.append(given["href"])
        elif tag == "form":
            self.forms.append({"action": given.get("action"), "method": given.get("method"), "fields": {}})
        elif tag == "input" and self.forms:
            self.forms[-1]["fields"][given.get("name")] = given.get("value", "")
        elif tag == "label":
            self.labels.add(given["for"])
        elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append(int(tag[1]))
        if tag in ("input", "select", "textarea") and given.get("type") != "hidden":
            self.fields.append((given.get("id"), given.get("aria-label")))
        if "id" in given:
            self.ids.append(given["id"])

    def handle_data(self, data):
        self.words.append(data)

    def fields_of(self, name):
        """The fields of the form that has this one."""
        return next(form["fields"] for form in self.forms if name in form["fields"])

    def token(self):
        return next(form["fields"]["token"] for form in self.forms if "token" in form["fields"])


def whole(answer, *, status=200):
    """The page in an answer, which must be a sound one."""
    assert answer.status_code == status, (answer.url, answer.status_code, answer.text[:600])
    assert answer.headers["content-type"] == "text/html; charset=utf-8", answer.url
    assert answer.headers["content-security-policy"] == pages.POLICY
    assert (
        answer.headers["cache-control"] == "no-store"
        and answer.headers["x-content-type-options"] == "nosniff"
    )
    seen = Seen(answer.text)
    assert not seen.wrong, (answer.url, seen.wrong)
    assert len(seen.ids) == len(set(seen.ids)), (answer.url, sorted(seen.ids))
    assert seen.headings.count(1) == 1 and seen.headings[0] == 1, (answer.url, seen.headings)
    for one, label in seen.fields:
        assert label or one in seen.labels, (answer.url, one)
    return seen


async def page(one, path, *, status=200, headers=HTML, **more):
    return whole(await one.client.get(path, headers=headers, **more), status=status)


async def filled(one, headers=None):
    """A project with everything in it: revisions, a workspace with versions and a branch, a dead letter."""
    for first in (0, 3, 6):
        for number in range(first, first + 3):
            await one.post("events", made.data(number), status=202, headers=headers)
        await one.work()
    base = None
    # The second begins with what the first left; the third saw neither, and becomes a branch.
    for number in (20, 21, 22):
        more = [(f"more-{number}.txt", b"more\n" * number)] if number > 20 else []
        claim = await one.post("archives", tar(*FILES, *more), status=201, headers=headers)
        workspace = {"archive": claim, **({"base": base} if number == 21 else {})}
        data = made.data(number, rollout="conv", workspaces=[workspace])
        await one.post("events", data, status=202, headers=headers)
        await one.work()
        body = (await lines.read(one.store, lines.Line("acme", "conv"))).body
        base = {"counter": body["version"], "snapshot": lines.id_of(body["ref"])}
    bad = {**made.data(30), "record": "no JSON at all " + HOSTILE}
    await one.post("events", bad, status=202, headers=headers)
    await letters(one)


FILES = (
    ("readme.md", b"# Hello\n"),
    ("src/main.py", b"print(1)\n" * 5),
    ("src/bytes.bin", bytes(range(256)) * 20),
    ("large.txt", b"a line of text that is repeated\n" * 170_000),
)


async def letters(one):
    taken = [message async for message in one.bus.read("runs")]
    await record.RecordStage(one.store, one.bus).process(taken)


ROUTES = [route for router in console.ROUTERS for route in router.routes]


def route_of(path):
    """The route that answers a GET of this address."""
    plain = path.partition("?")[0]
    return next(one.path for one in ROUTES if "GET" in one.methods and one.path_regex.match(plain))


async def crawled(one, start, headers=HTML, most=6):
    """The pages that links lead to from `start`, at most so many of each route: path → what is there."""
    found, left, seen = {}, [start], {}
    while left:
        path = left.pop(0).partition("#")[0]
        if not path or path in found or path.startswith("http"):
            continue
        route = route_of(path)
        seen[route] = seen.get(route, 0) + 1
        if seen[route] > most:
            continue
        answer = await one.client.get(path, headers=headers)
        while answer.status_code == 303:
            answer = await one.client.get(answer.headers["location"], headers=headers)
        if route.endswith(("/raw", "/raw/{path:path}")):
            assert answer.status_code == 200 and answer.headers["content-disposition"].startswith(
                "attachment"
            )
            continue
        found[path] = whole(answer)
        left += [urllib.parse.urljoin(path, link) for link in found[path].links]
    return found, set(seen)


FILLED = {
    "project": "acme",
    "memory": "support",
    "n": "1",
    "path:path": "MEMORY.md",
    "rollout": "conv-1",
    "agent": "main",
    "run": "run-1",
    "snapshot": "conv",
    "letter": "0" * 16,
    "key": "0" * 32,
    "decision": "approve",
    "name": "console.css",
}
ASKED = {"line": "1", "to": "1", "from": "1", "id": "run-1", "path": "readme.md", "q": "task"}
OF_PROJECTS = [
    (method, one) for one in ROUTES if "{project}" in one.path for method in one.methods if method != "HEAD"
]
WRITES = {
    "merge": access.WRITE,
    **dict.fromkeys(("redrive", "revoke", "keys", "audit", "reviews/{memory}"), access.ADMIN),
}


def address(route, project="acme"):
    filled = {**FILLED, "project": project}
    return re.sub(r"\{([^}]+)\}", lambda found: filled[found[1]], route.path)


async def signed_in(one, scope="admin", project="acme"):
    """The headers of a browser that is signed in with a new key, as signing in by the form gives them."""
    token = (await one.key(project, scope))["Authorization"].partition(" ")[2]
    answer = await sign_in(one, token)
    assert answer.status_code == 303 and answer.headers["location"] == f"/projects/{project}"
    return {**HTML, "Cookie": answer.headers["set-cookie"].partition(";")[0]}


async def sign_in(one, token, **more):
    form = await page(one, "/sign-in", headers=more.pop("headers", HTML))
    one.client.cookies.clear()
    answer = await one.client.post(
        "/sign-in", data={"key": token, "token": form.token(), **more}, headers=HTML
    )
    one.client.cookies.clear()
    return answer


def without_tokens(text):
    return re.sub(r'name="token" value="[^"]+"', "", text)


async def the_letter(one, headers=HTML):
    seen = await page(one, "/projects/acme/dead", headers=headers)
    return next(link for link in seen.links if "/dead/" in link)
