"""Tool calls as the rules see them: who was called, with what leaves, and what shape the answer has.

No rule here knows a word of any language or the name of any tool. A call is told from another by its *head*
(the tool; for a shell, the program too), two calls are compared by the leaves of their arguments, and two
answers by their shape.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from runlore.memory import transcript

HEAD_CHARS_MAX = 80
SCALAR_CHARS_MAX = 400
_SCALAR = re.compile(r"-?[\d.,]+%?|\"[^\"]{0,40}\"|true|false|null|True|False|None")
_VALUE = re.compile(r"[\d/\\]")
LEAVES_MAX = 400
"""Leaves of one call's arguments that are compared."""
CONTAINER_CHARS_MAX = 200_000

# The argument names under which the SDK's own shell tools (`exec_command.cmd`, `shell_call.action.commands`,
# `local_shell_call.action.command`) take a command line.
_COMMAND_KEYS = ("cmd", "command", "commands")
_COMMAND_START = re.compile(r"[a-z./~][\w./+-]{0,40}(?:\s|$)")
_OPTION_OR_PATH = re.compile(r"\s--?[A-Za-z]|\s[\w.~-]*/[\w.-]|\s[\w-]+\.[a-z]{1,4}(?:\s|$)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=\S*")
_SHELL_WRAPPERS = re.compile(r"(?:\S*/)?(?:ba|z|da|k)?sh")
_WORD = re.compile(r"[^\W_]+|_", re.UNICODE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its answer. `number` counts calls; `index` is the item that evidence names."""

    number: int
    index: int
    tool: str
    head: str
    args: Any
    command: str
    """The command line, where the call is a shell's; else ""."""
    leaves: tuple[tuple[str, str], ...]
    """(path, value as text) of every scalar argument."""
    output: transcript.Output | None
    container: Any
    """The answer as JSON (an object or a list), or None where it is neither."""
    shape: str
    """The kind of the answer: `none`, `empty`, `object`, `list`, `scalar`, `text`."""
    template: str
    """A finer shape: an object's keys, or how a text's first line is built once its values are taken out."""

    @property
    def text(self) -> str:
        return self.output.text if self.output else ""


def of(items: list[transcript.Item]) -> list[Call]:
    """The calls among `items`, in order."""
    made = [item for item in items if item.kind == "call"]
    by_tool: dict[str, list[str | None]] = defaultdict(list)
    for item in made:
        by_tool[item.tool].append(_only_text(item.args))
    shells = {tool for tool, values in by_tool.items() if _are_commands(values)}
    return [_call(number, item, item.tool in shells) for number, item in enumerate(made)]


def _only_text(args: Any) -> str | None:
    """The one argument of a call, where it is a text."""
    if isinstance(args, dict) and len(args) == 1:
        args = next(iter(args.values()))
    return args if isinstance(args, str) else None


def _are_commands(found: list[str | None]) -> bool:
    """Whether a tool takes command lines under a name of its own: one text that begins with a program.

    Told from prose and from search words by form: nearly every text begins with a plain lower-case word, and
    some hold an option or a path.
    """
    texts = [value.strip() for value in found if value and value.strip()]
    if len(texts) < 2 or len(texts) < len(found):
        return False
    plain = sum(_COMMAND_START.match(value) is not None for value in texts)
    return plain >= 0.8 * len(texts) and any(_OPTION_OR_PATH.search(value[:400]) for value in texts)


def _call(number: int, item: transcript.Item, is_shell: bool) -> Call:
    command = _command(item.args) or ((_only_text(item.args) or "").strip() if is_shell else "")
    if command:
        program = program_of(command)
        head = item.tool if program in ("", item.tool) else f"{item.tool}: {program}"
        pairs: list[tuple[str, str]] = [("", command)]
    else:
        head = item.tool
        pairs = [(path, _as_text(value)) for path, value in transcript.leaves(item.args)][:LEAVES_MAX]
    container = _container(item.output.text) if item.output else None
    kind = _shape(item.output, container)
    return Call(
        number=number,
        index=item.index,
        tool=item.tool,
        head=head[:HEAD_CHARS_MAX],
        args=item.args,
        command=command,
        leaves=tuple(pairs),
        output=item.output,
        container=container,
        shape=kind,
        template=_template(kind, item.output, container),
    )


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def _command(args: Any) -> str:
    if not isinstance(args, dict):
        return ""
    for key in _COMMAND_KEYS:
        value = args.get(key)
        if isinstance(value, str):
            return value.strip()
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            # An argv whose shell runs one script (`["bash", "-lc", "…"]`) is that script.
            if len(value) >= 3 and _SHELL_WRAPPERS.fullmatch(value[0]) and value[1].startswith("-"):
                return value[2].strip()
            return ("\n" if key == "commands" else " ").join(value).strip()
    return ""


def program_of(command: str) -> str:
    """The program that a command line runs: past `cd x &&`, assignments and paths; "" if it is not plain."""
    for part in re.split(r"&&|;|\n", command[:2000]):
        words = part.split()
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        if not words or words[0] in ("cd", "export", "set", "source", "."):
            continue
        name = words[0].rsplit("/", 1)[-1]
        return name if re.fullmatch(r"[\w.+-]{1,40}", name) else ""
    return (
        (command.split() or [""])[0] if re.fullmatch(r"[\w.+-]{1,40}", (command.split() or [""])[0]) else ""
    )


def _container(text: str) -> Any:
    body = text.strip()
    if len(body) < 2 or len(body) > CONTAINER_CHARS_MAX or body[0] + body[-1] not in ("{}", "[]"):
        return None
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = _python_literal(body)
    return parsed if isinstance(parsed, dict | list) else None


def _python_literal(body: str) -> Any:
    # Many Python tools answer `str(a_dict)`; `literal_eval` reads it without running anything.
    if len(body) > 20_000 or body[:2] not in ("{'", "['", "[{", "[(", "{1", "{}"):
        return None
    try:
        return ast.literal_eval(body)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _shape(output: transcript.Output | None, container: Any) -> str:
    if output is None:
        return "none"
    if container is not None:
        return "object" if isinstance(container, dict) else "list"
    body = output.text.strip()
    if not body:
        return "empty"
    return "scalar" if len(body) <= SCALAR_CHARS_MAX and _SCALAR.fullmatch(body) else "text"


def _template(kind: str, output: transcript.Output | None, container: Any) -> str:
    if kind == "object":
        return "object:" + ",".join(sorted(map(str, container))[:16])
    if kind != "text" or output is None:
        return kind
    first = output.text.lstrip()[:200].splitlines()[0]
    return "text:" + " ".join([word for word in first.split() if not _VALUE.search(word)][:6])


def is_same(a: Call, b: Call) -> bool:
    """Whether two calls ask for exactly the same thing."""
    return a.head == b.head and a.leaves == b.leaves


def is_variant(a: Call, b: Call) -> bool:
    """Whether `b` is `a` tried again with a few things changed, and not another errand of the same tool."""
    if a.head != b.head or a.leaves == b.leaves:
        return False
    if a.command:
        # A short command has few words to keep; a long one that keeps under half of them is another errand.
        is_short = max(len(a.command), len(b.command)) <= 60
        return _word_overlap(a.command, b.command) >= (0.3 if is_short else 0.5)
    total = max(len(a.leaves), len(b.leaves))
    if total <= 2:
        return True
    shared = sum((Counter(a.leaves) & Counter(b.leaves)).values())
    return shared / total >= 0.34 or len(changed_paths(a, b)) <= 2


def _word_overlap(a: str, b: str) -> float:
    left, right = set(a[:4000].split()), set(b[:4000].split())
    return len(left & right) / max(1, max(len(left), len(right)))


def changed_paths(a: Call, b: Call) -> list[str]:
    """The argument paths whose values differ between two calls."""
    before: dict[str, Counter[str]] = {}
    after: dict[str, Counter[str]] = {}
    for leaves, into in ((a.leaves, before), (b.leaves, after)):
        for path, value in leaves:
            into.setdefault(path, Counter())[value] += 1
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def fingerprint(*parts: str) -> str:
    """Twelve hex digits that tell one event from another, whichever run's record repeats it."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def identity(call: Call) -> str:
    """The fingerprint of a call and its answer."""
    return fingerprint("call", call.head, repr(call.leaves), call.text[:2000])
