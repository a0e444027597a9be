"""The documentation as a site, made without a network: `make docs`, which runs `python docs/site/build.py`.

Pages are the files in docs/ and some READMEs, as they are. What changes on their way into the site: a mention of a page
("docs/METRICS.md says …") becomes a link to it, a link to what the site does not hold becomes its name, and reference
pages are made of the published contracts (generated.py). A mention of a page that does not exist ends the build; so do,
in Zensical, a link or an anchor that leads nowhere and a page that the navigation does not name.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

sys.path.insert(0, str(Path(__file__).parent))
import generated

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ELSEWHERE = {
    # a file outside of docs/ → its page
    "examples/agents/README.md": "examples/agents.md",
    "examples/any-agent/README.md": "examples/any-agent.md",
    "clients/typescript/README.md": "typescript.md",
}
PICTURES = {".png", ".svg", ".jpg", ".webp"}
ASSETS = ("iframe-worker.js", "site.css")
FENCED = re.compile(r"(^```.*?^```[^\n]*\n|^(?: {4}|\t)[^\n]*\n)", re.M | re.S)
LIST = re.compile(r"^(?!(?:[-*]|\d+\.) |\s|\||#)(.+)\n(?=(?:[-*]|1\.) )", re.M)
"""A line of a paragraph right before a list, which CommonMark begins there and Python-Markdown does not."""
WORDS = re.compile(
    r"(?P<code>(`+)(?!`).+?(?<!`)\2(?!`))"
    r"|(?P<link>(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\))"
    r"|(?P<mention>(?<![\w/.\[-])(?:docs/)?(?P<name>[A-Z][A-Z0-9-]+|decisions/[\w-]+)\.md(?P<anchor>#[\w-]+)?(?![\w/]))",
    re.S,
)


class Broken(Exception):
    """What the documentation says of itself does not hold."""


def sources() -> dict[str, str]:
    """Where each page comes from: file of the repository → page of the site."""
    own = (path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return {**{f"docs/{one}": one for one in sorted(own)}, **ELSEWHERE}


def pages() -> dict[str, str]:
    """Each page's text by its path in the site."""
    texts = {file: (ROOT / file).read_text("utf-8") for file in sources()}
    titles = {file: title(text) for file, text in texts.items()}
    made = {page: linked(texts[file], file, page, titles) for file, page in sources().items()}
    for page, text in generated.pages().items():
        made[page] = linked(text, f"docs/{page}", page, titles)
    return made


def title(text: str) -> str:
    """A page's first heading, as words."""
    return re.sub(r"[`*]", "", re.search(r"^# (.+)$", text, re.M)[1])  # type: ignore[index]


def linked(text: str, file: str, page: str, titles: dict[str, str]) -> str:
    """A page's text with links that lead somewhere in the site; code stays as it is."""

    def one(found: re.Match[str]) -> str:
        if found["code"]:
            return found[0]
        if found["mention"]:
            named = f"docs/{found['name']}.md"
            if named in titles:
                return f"[{titles[named]}]({relpath(sources()[named], _folder(page))}{found['anchor'] or ''})"
            if found[0].startswith("docs/"):
                raise Broken(f"{file} mentions {found[0]}, which is no page")
            return found[0]
        return _link(found, file, page, titles)

    parts = FENCED.split(text)
    # Every second part is code.
    return "".join(
        part if number % 2 else LIST.sub(r"\1\n\n", WORDS.sub(one, part)) for number, part in enumerate(parts)
    )


def _link(found: re.Match[str], file: str, page: str, titles: dict[str, str]) -> str:
    target, _, anchor = found["target"].partition("#")
    if "://" in target or not target:
        return found[0]
    there = normpath(str(PurePosixPath(file).parent / target))
    if not (ROOT / there).exists() and page not in generated.pages():
        raise Broken(f"{file} links to {found['target']}, which does not exist")
    anchor = f"#{anchor}" if anchor else ""
    if there in titles:
        is_name = found["text"].endswith(".md")
        return f"[{titles[there] if is_name else found['text']}]({relpath(sources()[there], _folder(page))}{anchor})"
    if there.startswith("docs/"):  # A picture, or a page that is made: both lie where they are named.
        return f"{found['image']}[{found['text']}]({relpath(there.removeprefix('docs/'), _folder(page))}{anchor})"
    return f"`{there}`" if found["text"].strip("`") in (there, target) else f"{found['text']} (`{there}`)"


def _folder(page: str) -> str:
    return str(PurePosixPath(page).parent)


def named(nav: object) -> list[str]:
    """Every page that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for one in parts for page in named(one)]  # type: ignore[union-attr]


def gather(folder: Path) -> None:
    """Everything that Zensical needs, in `folder`."""
    made = pages()
    config = tomllib.loads((HERE / "zensical.toml").read_text("utf-8"))
    wanted = named(config["project"]["nav"])
    if sorted(wanted) != sorted(made):
        odd = sorted(set(wanted) ^ set(made)) or "one twice"
        raise Broken(f"the nav in docs/site/zensical.toml must name each page once: look at {odd}")
    for page, text in made.items():
        path = folder / "pages" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        # A page without sections has no list of them, and its tables may have that room.
        path.write_text(text if "\n## " in text else f"---\nhide: [toc]\n---\n\n{text}", "utf-8")
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in PICTURES:
            there = folder / "pages" / path.relative_to(ROOT / "docs")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)
    (folder / "pages/assets").mkdir()
    for name in ASSETS:
        shutil.copy(HERE / name, folder / "pages/assets" / name)
    shutil.copy(HERE / "zensical.toml", folder)


def build(into: Path) -> None:
    """Make the site in `into`, which is replaced only once the new one is whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gather(folder)
        made = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "zensical.toml"]
        done = subprocess.run(made, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            # After what it found there is a stack of its own, which helps nobody.
            told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).split("Traceback")[0]
            raise Broken(f"Zensical refused the site:\n{told.strip()}")
        shutil.rmtree(into, ignore_errors=True)
        shutil.move(folder / "site", into)


def main() -> None:
    parser = argparse.ArgumentParser(description="The documentation as a site, made without a network.")
    parser.add_argument("--into", type=Path, default=ROOT / "site", help="The folder of the site.")
    into = parser.parse_args().into
    try:
        build(into)
    except Broken as exc:
        raise SystemExit(f"error: {exc}") from None
    print(f"made {len(list(into.rglob('*.html')))} pages; open {into / 'index.html'}")


if __name__ == "__main__":
    main()
