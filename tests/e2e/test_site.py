"""The site of the documentation: built offline, it loads nothing from elsewhere, shows all of a page, is searched."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import homes
import markdown_it
import pytest

import browser

pytest.importorskip("zensical", reason="zensical is not installed: pip install --group docs")
SITE = homes.ROOT / "docs" / "site"
sys.path.insert(0, str(SITE))
import build  # noqa: E402

SHOWN = ("h1", "h2", "h3", "table", "tr", "li", "pre", "code", "img", "strong", "em")
SEARCHED = """
(async () => {
  document.querySelector(".md-search__button").click();
  for (let tries = 0; tries < 600; tries++) {
    await new Promise((done) => setTimeout(done, 50));
    const found = [...document.querySelectorAll("*")].map((one) => one.shadowRoot).filter(Boolean);
    const input = found.map((one) => one.querySelector("input")).find(Boolean);
    if (!input) continue;
    if (input.value !== "dead letters") {
      input.value = "dead letters";
      input.dispatchEvent(new InputEvent("input", { bubbles: true }));
    }
    const text = found.map((one) => one.textContent).join(" ");
    if (/\\d+ results/.test(text)) return text;
  }
  return "";
})()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` makes it."""
    folder = tmp_path_factory.mktemp("made") / "site"
    done = subprocess.run(
        [sys.executable, SITE / "build.py", "--into", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"made \d+ pages; open {re.escape(str(folder / 'index.html'))}\n", done.stdout)
    return folder


class Page(HTMLParser):
    """What a page of HTML loads and links, the ids that it has, and what its article consists of."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.tags, self._inside = [], [], set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if given.get("id") else set()
        self._inside = self._inside or tag == "article"
        if self._inside:
            self.tags.append(tag)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "canonical", "sitemap"):
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "article"


def pages_of(site):
    return {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def test_nothing_is_loaded_from_elsewhere(site):
    for path, page in pages_of(site).items():
        outside = [one for one in page.loads if re.match(r"[a-z]+:|//", one) and not one.startswith("data:")]
        assert not outside, f"{path.name} loads {outside}"
        # What only its script would fetch: diagrams.
        assert 'class="mermaid"' not in path.read_text("utf-8"), path.name
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", path.read_text("utf-8")), path.name


def test_every_link_and_picture_leads_to_something(site):
    pages = pages_of(site)
    for path, page in pages.items():
        if path.name == "404.html":  # It is shown at any address, so its links begin at the root.
            continue
        for target in [*page.links, *page.loads]:
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), f"{path.relative_to(site)} links to {target}"
            assert not anchor or there not in pages or anchor in pages[there].ids, (path.name, target)


def test_each_page_shows_all_of_what_its_source_has(site):
    """Lists, tables and code that one kind of Markdown knows and the other does not."""
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    for name, text in build.pages().items():
        wanted, shown = Page(f"<article>{parser.render(text)}</article>").tags, Page(
            (site / name).with_suffix(".html").read_text("utf-8")
        ).tags  # fmt: skip
        for tag in SHOWN:
            assert shown.count(tag) == wanted.count(tag), f"{name}: <{tag}>"


def test_the_reference_has_what_the_contracts_have(site):
    routes = (site / "reference/http.html").read_text("utf-8")
    for path, operations in json.loads((homes.ROOT / "schemas/openapi.json").read_text("utf-8"))[
        "paths"
    ].items():
        assert all(f"<code>{method.upper()} {path}</code>" in routes for method in operations), path
    events = (site / "reference/events.html").read_text("utf-8")
    for path in (homes.ROOT / "schemas").glob("io.runlore.*.json"):
        schema = json.loads(path.read_text("utf-8"))
        assert all(f"<code>{name}</code>" in events for name in schema["properties"]), path.name
    alerts = (site / "reference/alerts.html").read_text("utf-8")
    for name in re.findall(
        r"- alert: (\w+)", (homes.ROOT / "infra/prometheus/alerts.yml").read_text("utf-8")
    ):
        assert f">{name}</a>" in alerts


def test_a_mention_of_a_page_is_a_link_and_code_stays_as_it_is():
    titles = {"docs/CLI.md": "Commands", "docs/ADMIN.md": "Administration"}
    code = "\n```\ndocs/CLI.md\n```\n    docs/CLI.md\n"
    text = f"See docs/CLI.md, `docs/CLI.md`, [ADMIN.md](ADMIN.md#x), MEMORY.md.\n{code}"
    made = build.linked(text, "docs/HTTP.md", "reference/x.md", titles)
    linked = "See [Commands](../CLI.md), `docs/CLI.md`, [Administration](../ADMIN.md#x), MEMORY.md.\n"
    assert made == linked + code


def test_a_link_to_what_the_site_does_not_hold_is_its_name():
    text = "[the map](../schemas/openapi.json), [schemas/golden](../schemas/golden), [OpenAI](https://openai.com)"
    made = build.linked(text, "docs/HTTP.md", "HTTP.md", {})
    assert made == "the map (`schemas/openapi.json`), `schemas/golden`, [OpenAI](https://openai.com)"


@pytest.mark.parametrize("text", ["docs/NOPE.md says so", "[x](NOPE.md)", "[x](../no/such/file)"])
def test_what_does_not_exist_ends_the_build(text):
    with pytest.raises(build.Broken):
        build.linked(text, "docs/HTTP.md", "HTTP.md", {"docs/HTTP.md": "HTTP"})


def test_a_page_that_the_navigation_does_not_name_ends_the_build(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "ELSEWHERE", {**build.ELSEWHERE, "README.md": "readme.md"})
    with pytest.raises(build.Broken, match=r"readme\.md"):
        build.gather(tmp_path)


@pytest.mark.parametrize("wrong", ["[x](#no-such-heading)", "[x](CLI.md#no-such-heading)"])
def test_an_anchor_that_leads_nowhere_ends_the_build_and_leaves_the_site_as_it_was(
    wrong, monkeypatch, tmp_path
):
    into = tmp_path / "site"
    into.mkdir()
    few = {"index.md": f"# Home\n\n{wrong}\n", "CLI.md": "# Commands\n"}
    monkeypatch.setattr(build, "pages", lambda: few)
    monkeypatch.setattr(build, "named", lambda nav: list(few))
    with pytest.raises(build.Broken, match="Zensical refused"):
        build.build(into)
    assert list(into.iterdir()) == []


@pytest.fixture
def opened(site, tmp_path):
    """The site in a browser, from the disk, as a copy: nothing that it made counts."""
    shutil.copytree(site, tmp_path / "site")
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(browser.browser(tmp_path))
        yield lambda **how: there.page(**how), Path(tmp_path / "site")


def test_from_a_disk_it_is_searched_and_nothing_of_it_fails(opened):
    page_of, folder = opened
    page = page_of()
    page.go(f"file://{folder}/index.html")
    assert "dead list" in page.run(SEARCHED)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_it_is_dark_where_the_system_is_and_fits_a_phone(opened):
    page_of, folder = opened
    for dark, width in ((False, 1280), (True, 390)):
        page = page_of(dark=dark, width=width, height=844)
        page.go(f"file://{folder}/reference/http.html")
        light = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (light < 100) is dark
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
