"""The blocks of code in the documentation, and a terminal on which they are run as a reader would, page by page.

What a page says of a block stands in a comment right before it, which no reader sees:

    <!-- not run: WHY -->     it can not be run here; its commands are still parsed, its JSON still read
    <!-- file: NAME -->       it is the content of a file that later blocks of the page use
    <!-- exit: N -->          its last command ends with this code
    <!-- beside -->           its last command goes on while the rest of the page is run

A block that is named `console` shows commands after `$ `, and what they print; `…` there stands for anything. Where it
shows nothing after a command, anything may be printed. In `sh` each line is a command.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import homes
import markdown_it
import yaml

from runlore.cli import main

PAGES = (
    "README.md",
    *sorted(str(path.relative_to(homes.ROOT)) for path in (homes.ROOT / "docs").rglob("*.md")),
    *sorted(
        str(path.relative_to(homes.ROOT))
        for folder in ("benchmarks", "clients", "examples", "infra")
        for path in (homes.ROOT / folder).rglob("README.md")
        if not {"node_modules", ".cache"} & set(path.parts)
    ),
)
SHOWN = {"text", "mermaid", "indented"}
"""Languages in which nothing can be run: figures."""
COMMAND = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S* )*(?:runlore|python3?|pip|npm|make|curl|docker|helm|kubectl|diff|export|claude|codex) "
)
NOTES = ("not run", "file", "exit", "beside")
METACHARACTERS = set("|&;<>()$`*?[]{}\\~\n")
NEED_A_PROCESS = ("mcp",)
"""Commands that take standard input and output for themselves."""
SECONDS_MAX = 120
_PARSER = markdown_it.MarkdownIt("commonmark").enable("table")


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of code, with what its page says of it."""

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def where(self):
        return f"{self.page}:{self.line}"

    @property
    def is_run(self):
        return "not run" not in self.notes and self.language not in SHOWN

    def steps(self):
        """Commands, each with what it is said to print (None: nothing is said)."""
        if self.language == "sh":
            whole = self.text.replace("\\\n", " ")
            return [(one, None) for one in whole.splitlines() if one.strip() and not one.startswith("#")]
        found = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(([line.removeprefix("$ ")], []))
            elif found and found[-1][0][-1].endswith("\\"):
                found[-1][0].append(line)
            else:
                assert found, f"{self.where}: a console begins with a command after `$ `"
                found[-1][1].append(line)
        return [("\n".join(command), "\n".join(told).strip() or None) for command, told in found]


def read(page):
    """Every block of a page, and every command that stands in its text."""
    tokens = _PARSER.parse((homes.ROOT / page).read_text("utf-8"))
    blocks, inline, before = [], [], None
    for token in tokens:
        if token.type in ("fence", "code_block"):
            notes = {}
            if before is not None and before.map[1] == token.map[0]:
                said = re.findall(r"<!-- *([a-z ]+?)(?:: *(.*?))? *-->", before.content, re.S)
                notes = {name: value for name, value in said if name in NOTES}
            language = (
                token.info.split()[0] if token.info else ("indented" if token.type == "code_block" else "")
            )
            blocks.append(Block(page, token.map[0] + 1, language, token.content, notes))
        elif token.type == "inline":
            inline += [
                (f"{page}:{token.map[0] + 1}", one.content.replace("\n", " "))
                for one in token.children
                if one.type == "code_inline" and one.content.startswith("runlore ")
            ]
        before = token if token.type == "html_block" else None
    return blocks, inline


# --- what is not run is read --------------------------------------------------------------------------------


def parsed(block):
    """Read a block without running it; what it holds of commands and settings must exist."""
    if block.language in ("json", "toml", "yaml"):
        value = {"json": _json, "toml": tomllib.loads, "yaml": yaml.safe_load}[block.language](block.text)
        for one in _servers(value):
            accepts([*map(str, one["args"])])
    elif block.language == "python":
        compile(block.text, block.where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    elif block.language in ("console", "sh"):
        for command, _ in block.steps():
            accepts_line(command)


def _json(text):
    return [json.loads(one) for one in text.strip().split("\n\n")]


def _servers(value):
    """Programs that a configuration starts, which are ours."""
    if isinstance(value, dict):
        if value.get("command") == "runlore":
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _servers(one)


def accepts_line(line):
    """Every `runlore …` in a shell's line is one that the command line takes."""
    words = shlex.split(line, comments=True)
    if words and words[0] in ("helm", "kubectl"):
        return  # There it is the name of a release.
    for at, word in enumerate(words):
        is_ours = word.endswith("runlore") and (
            at == 0 or not words[at - 1].endswith(("exec", "add", "install"))
        )
        if is_ours and "=" not in word and "-" not in word:
            rest = [*words[at + 1 :], "|"]
            ends = min(rest.index(one) for one in ("|", "&&", "&", ">", ";") if one in rest)
            accepts(rest[:ends])
            return


_command = functools.cache(main.command)


def accepts(words):
    """The words of a command line, as far as they can be judged without doing anything."""
    command, context, words = _command(), None, [one for one in words if one != "--help"]
    while subcommands := getattr(command, "commands", None):
        context = command.make_context("runlore", [], parent=context, resilient_parsing=True)
        if not words or words[0] not in subcommands:
            assert not words or context.parent, f"no such command: {words[0]}"
            break
        command = subcommands[words.pop(0)]
    if words:
        command.make_context(command.name, words, parent=context)


# --- what is run --------------------------------------------------------------------------------------------


class Terminal:
    """A shell, a folder and a home: the state of a reader who works through one page."""

    def __init__(self, folder, home):
        self.folder, self.home = Path(folder), home
        self.cwd = self.folder
        self.environment = {
            **home.environment,
            "HOME": str(self.folder),
            "PATH": f"{homes.RUNLORE.parent}{os.pathsep}{home.environment['PATH']}",
            "COLUMNS": "200",
        }
        self.instead = {}
        """What stands in a page → what is meant here: a port, an id."""
        self.names = {}
        """What the page's Python blocks have besides what they make."""
        self.before = {}
        """The beginning of a block → called before it is run."""
        self._beside = []
        self._python = asyncio.Runner()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._here():
            self._python.close()
        for process in self._beside:
            process.terminate()
            process.wait(timeout=SECONDS_MAX)

    def meant(self, text):
        for said, meant in self.instead.items():
            text = text.replace(said, str(meant))
        return text

    def run(self, block):
        """Do what a block says, and compare what comes of it."""
        for beginning, act in self.before.items():
            if block.text.startswith(beginning):
                act()
        if "file" in block.notes:
            path = self.cwd / block.notes["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.meant(block.text), "utf-8")
        elif block.language == "python":
            self.execute(self.meant(block.text), block.where)
        elif block.language in ("console", "sh"):
            self._shell(block)

    def _shell(self, block):
        steps = block.steps()
        for number, (command, told) in enumerate(steps):
            is_last, command = number == len(steps) - 1, self.meant(command)
            if is_last and "beside" in block.notes:
                self.start(command)
                continue
            code, out = self.do(command)
            wanted = int(block.notes.get("exit", 0)) if is_last else 0
            assert code == wanted, f"{block.where}: `{command}` ended with {code}, not {wanted}:\n{out}"
            assert "Traceback" not in out, f"{block.where}: {out}"
            if told is not None:
                assert matches(self.meant(told), out), (
                    f"{block.where}: `{command}` printed\n{out}\nand not\n{told}"
                )

    def do(self, command):
        """A command's exit code, and what a terminal shows of it."""
        words = shlex.split(command, comments=True)
        bare = re.sub(r"\s#.*$", "", command)
        is_ours = words[0] == "runlore" and words[1] not in NEED_A_PROCESS
        if is_ours and not METACHARACTERS & set(re.sub(r"'[^']*'|\"[^\"$]*\"", "", bare)):
            return self.call(words)
        state = self.folder / ".shell"
        script = f"{command}\ncode=$?; {{ pwd; env -0; }} > {shlex.quote(str(state))}; exit $code"
        made = ["bash", "-c", script]
        done = subprocess.run(
            made, cwd=self.cwd, env=self.environment, stdin=subprocess.DEVNULL, timeout=SECONDS_MAX, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if state.exists():
            cwd, _, rest = state.read_text().partition("\n")
            self.cwd = Path(cwd)
            self.environment = dict(one.split("=", 1) for one in rest.split("\0") if "=" in one)
            state.unlink()
        return done.returncode, done.stdout.decode()

    def call(self, words):
        """The same inside of this process: a tenth of the time."""
        out = io.StringIO()
        with self._here(), mock.patch.object(sys, "argv", [str(one) for one in words]):
            given = mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
            with given, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                try:
                    main.main()
                    code = 0
                except SystemExit as exc:
                    code = exc.code or 0
        return code, out.getvalue()

    @contextlib.contextmanager
    def _here(self):
        """This process in the reader's place."""
        kept = {name: os.environ[name] for name in ("PYTEST_CURRENT_TEST",) if name in os.environ}
        with (
            mock.patch.dict(os.environ, {**self.environment, **kept}, clear=True),
            contextlib.chdir(self.cwd),
        ):
            yield

    def start(self, command):
        """A command that goes on; it has begun once it says where it serves."""
        log = self.folder / f"beside-{len(self._beside)}.log"
        with open(log, "wb") as out:
            words = shlex.split(command, comments=True)
            process = subprocess.Popen(
                words, cwd=self.cwd, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self._beside.append(process)
        homes.wait_until(
            lambda: process.poll() is not None or b"http" in log.read_bytes(), f"{command} to begin"
        )
        assert process.poll() is None, log.read_text()

    def execute(self, source, where):
        """Python as in a notebook: `await` may stand anywhere, and names stay for the blocks after it."""
        code = compile(source, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with self._here():
            made = eval(code, self.names)
            if inspect.iscoroutine(made):
                self._python.run(made)


def matches(told, printed):
    """Whether a page shows what was printed; `…` is anything."""
    lines = [line.rstrip() for line in told.strip().splitlines()]
    pattern = r"\n".join(re.escape(line) for line in lines).replace("…", "(?:.|\n)*?")
    shown = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, shown) is not None
