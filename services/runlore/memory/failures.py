"""Which calls failed, and which change made them work: by structure and behaviour, in any language.

A call failed if the protocol says so (exit code, status, error object), if its answer ends as a stack trace
does, or if the agent behaved as after a failure: its answer had not the shape that this tool's answers have,
and the agent asked again with a few arguments changed and then got that shape. Where neither shows, the call
is not called a failure: a missed lesson costs less than a false one.

A pair (failure, fix) needs the same head, changed arguments, an answer that is no failure, and that the
failure did not come back in the run. A call that works unchanged a second time is flaky, and teaches nothing.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from runlore.memory import calls, fixes, signatures

# agents.tool.default_tool_error_function answers exactly this sentence for a tool that raised; older
# versions went on with the exception's text.
SDK_TOOL_ERROR = "An error occurred while running the tool. Please try again."
# What pydantic and so the SDK's own tools answer to arguments that do not fit their schema.
_VALIDATION = re.compile(r"\A.{0,200}?\d+ validation errors? for \S+\n\S+.*\n\s+.+\[type=\w+", re.DOTALL)

# The shell's grammar: `> file` and `>> file`, but no `2> log`, no `>&1` and no device.
_REDIRECTED = re.compile(r"(?<![<>&\d=-])>>?\s*(?!/dev/|&)[\w.~$/{-]")
_QUOTED = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"")

RETRY_CALLS_MAX = 12
"""How many calls may lie between a failing call and the retry that is its answer."""
RETRIES_MAX = 64
"""How many calls of the same head after a failing one are looked through for what made it work."""
SHORT_CHARS_MAX = 600
"""A text longer than this is content, not a refusal, unless the protocol says otherwise."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failing call. `is_sure` is False where only this tool's answers in other runs can tell."""

    call: calls.Call
    signature: signatures.Signature
    message: str
    reason: str
    is_sure: bool
    fix: dict[str, Any] | None = None
    is_flaky: bool = False


def find(context: fixes.Context) -> list[Failure]:
    """The failures of a run, in order, each with its fix where it has one."""
    reasons = _reasons(context.calls)
    found = []
    for call in context.calls:
        reason = reasons.get(call.number)
        if reason is None:
            continue
        message = signatures.message_of(call, is_whole=reason in ("shape", "retried", "maybe"))
        signature = signatures.of(message, _own_leaves(call))
        if signatures.has_words(signature):
            found.append(Failure(call, signature, message, reason, reason != "maybe"))
    return _with_fixes(context, found, reasons)


def _own_leaves(call: calls.Call) -> list[tuple[str, str]]:
    if not call.command:
        return list(call.leaves)
    # Of a command line only what can be no word of a sentence is taken for a value: names, paths, options.
    words = [word.strip("'\"(),;") for word in call.command.split()[1:40]]
    return [("arg", word) for word in words if not word.isalpha()]


# --- which calls failed -----------------------------------------------------------------------------


def _reasons(made: list[calls.Call]) -> dict[int, str]:
    """Call number -> why it counts as failed; "maybe" where other runs must tell."""
    reasons = {call.number: reason for call in made if (reason := _by_protocol(call))}
    by_head: dict[str, list[calls.Call]] = defaultdict(list)
    for call in made:
        by_head[call.head].append(call)
    for same in by_head.values():
        reasons |= _by_behaviour(same, reasons)
    return reasons


def _by_protocol(call: calls.Call) -> str | None:
    output = call.output
    if output is None:
        return None
    if output.is_error:
        return "protocol"
    if output.timed_out:
        return "timeout"
    if output.exit_code is not None:
        return "exit code" if output.exit_code != 0 else None
    if output.text.startswith(SDK_TOOL_ERROR) or _VALIDATION.match(output.text[:2_000]):
        return "tool error"
    if isinstance(call.container, dict) and _is_error_object(call.container):
        return "error object"
    return "stack trace" if signatures.has_frames(output.text) else None


def _is_error_object(answer: dict[Any, Any]) -> bool:
    """An error object of JSON-RPC, MCP, OpenAI, HTTP problem details, or a plain `ok: false`."""
    if answer.get("isError") is True or answer.get("is_error") is True:
        return True
    if answer.get("ok") is False or answer.get("success") is False:
        return True
    error = answer.get("error") or answer.get("errors")
    if error and isinstance(error, str | dict | list):
        # A result that also carries data lists errors of its own (a validator's report): not a failed call.
        return not any(
            isinstance(answer.get(name), dict | list) and answer[name] for name in ("data", "result")
        )
    for name in ("status", "statusCode", "status_code", "code"):
        value = answer.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return True
    return False


class _Same:
    """The calls of one head that its own answers judge, in order: each question about them is answered in one pass."""

    def __init__(self, made: list[calls.Call]) -> None:
        self.calls = made
        self.kinds = Counter(call.shape for call in made)
        self._templates = Counter(call.template for call in made)
        self._place = {call.number: place for place, call in enumerate(made)}
        # Whether the next call is the retry of each; of the last there is none.
        follows = [_follows(one, later) for one, later in itertools.pairwise(made)] + [False]
        # From the end: where the chain of retries ends that each call begins.
        self._ends = list(range(len(made)))
        for place in range(len(made) - 2, -1, -1):
            if follows[place]:
                self._ends[place] = self._ends[place + 1]
        self._left = {call.template for call, followed in zip(made, follows, strict=False) if not followed}

    def answer_to(self, call: calls.Call) -> calls.Call | None:
        """The last variant of `call` in the chain of retries that follows it."""
        found = self.calls[self._ends[self._place[call.number]]]
        return found if found is not call and not calls.is_same(call, found) else None

    def is_usual(self, answer: calls.Call) -> bool:
        """Whether this tool gave such an answer at least twice."""
        return self._templates[answer.template] >= 2

    def is_always_retried(self, call: calls.Call) -> bool:
        """Whether the agent tried again after every answer of this shape: its own way to say that it failed."""
        return call.template not in self._left


def _follows(call: calls.Call, later: calls.Call) -> bool:
    """Whether the next call of a head is the retry of the one before."""
    if later.number - call.number > RETRY_CALLS_MAX:
        return False
    return calls.is_variant(call, later) or calls.is_same(call, later)


def _by_behaviour(same: list[calls.Call], known: dict[int, str]) -> dict[int, str]:
    """Reasons for the calls of one head that its own other answers tell."""
    judged = _Same([call for call in same if call.number not in known and _is_judged(call)])
    out: dict[int, str] = {}
    for call in judged.calls:
        if call.shape == "text":
            out |= _refusal(call, judged)
        elif call.shape == "object":
            out |= _odd_object(call, judged)
    return out


def _is_judged(call: calls.Call) -> bool:
    # A shell that answers exit codes has said all there is to say.
    return call.output is not None and call.output.exit_code is None


def _refusal(call: calls.Call, same: _Same) -> dict[int, str]:
    is_short = len(call.text) <= SHORT_CHARS_MAX
    if is_short and same.kinds["object"] + same.kinds["list"]:
        # This tool answers data, and here it answered a short sentence.
        return {call.number: "shape"}
    answer = same.answer_to(call)
    is_other = answer is not None and answer.template != call.template
    if is_other and same.is_usual(answer) and same.is_always_retried(call):
        return {} if same.is_always_retried(answer) else {call.number: "retried"}
    # Nothing in this run tells. Kept as a question for the other runs, if it looks like a sentence.
    is_open = is_short and len(same.calls) <= 4 and not call.command
    return {call.number: "maybe"} if is_open and len(call.text.strip()) >= 6 else {}


def _odd_object(call: calls.Call, same: _Same) -> dict[int, str]:
    """An object whose keys are not this tool's usual ones, asked again and then answered as usual."""
    answer = same.answer_to(call)
    if (
        answer is None
        or not isinstance(answer.container, dict | list)
        or not isinstance(call.container, dict)
    ):
        return {}
    if len(call.text) > SHORT_CHARS_MAX or not any(
        isinstance(value, str) for value in call.container.values()
    ):
        return {}
    mine = set(call.container)
    theirs = set(answer.container) if isinstance(answer.container, dict) else set()
    overlap = len(mine & theirs) / max(1, len(mine | theirs))
    if overlap >= 0.34 or len(answer.text) <= len(call.text) or not same.is_always_retried(call):
        return {}
    return {call.number: "shape"}


# --- which change made them work --------------------------------------------------------------------


class _Known:
    """What is asked of all failures and successes of a run while one failure is looked at."""

    def __init__(self, made: list[calls.Call], found: list[Failure], failed: set[int]) -> None:
        self.of_head: dict[str, list[calls.Call]] = defaultdict(list)
        self.place: dict[int, int] = {}
        self._worked: dict[tuple[str, tuple[Any, ...]], list[int]] = defaultdict(list)
        for call in made:
            self.place[call.number] = len(self.of_head[call.head])
            self.of_head[call.head].append(call)
            if call.number not in failed and _works(call):
                self._worked[call.head, tuple(call.leaves)].append(call.number)
        self.key_at = {one.call.number: one.signature.key for one in found}
        self._last = {(one.call.head, one.signature.key): one.call.number for one in found}

    def worked_again(self, call: calls.Call) -> int | None:
        """The number of the next call that asked for exactly the same, and worked."""
        numbers = self._worked.get((call.head, tuple(call.leaves)), [])
        place = bisect.bisect_right(numbers, call.number)
        return numbers[place] if place < len(numbers) else None

    def came_back(self, failure: Failure, working: calls.Call) -> bool:
        return self._last[failure.call.head, failure.signature.key] > working.number


def _with_fixes(context: fixes.Context, found: list[Failure], reasons: dict[int, str]) -> list[Failure]:
    failed = set(reasons)
    unsure = {number for number, reason in reasons.items() if reason == "maybe"}
    known = _Known(context.calls, found, failed)
    out = []
    for failure in found:
        if _is_flaky(failure, context.calls, known):
            out.append(replace(failure, is_flaky=True))
        else:
            # An unsure failure may be cured by an answer that is as unsure, if it is another sentence.
            ruled_out = _RuledOut(failed, set() if failure.is_sure else unsure, failure.call)
            out.append(replace(failure, fix=_fix(context, failure, known, ruled_out)))
    flaky = {(one.call.head, one.signature.key) for one in out if one.is_flaky}
    return [
        replace(one, fix=None, is_flaky=True) if (one.call.head, one.signature.key) in flaky else one
        for one in out
    ]


class _RuledOut(NamedTuple):
    """The calls that can be no cure of one failure."""

    failed: set[int]
    unsure: set[int]
    failing: calls.Call

    def __contains__(self, call: object) -> bool:
        assert isinstance(call, calls.Call)
        is_other = call.head == self.failing.head and call.template != self.failing.template
        is_other = is_other and call.number in self.unsure
        return call.number in self.failed and not is_other


def _is_flaky(failure: Failure, made: list[calls.Call], known: _Known) -> bool:
    """Whether the very same call worked later although nothing had been changed in between.

    What another command line did in between can not be known, so after one the rules abstain.
    """
    later = known.worked_again(failure.call)
    if later is None:
        return False
    between = itertools.islice(made, failure.call.number + 1, later)
    return not any(is_change(call) or _may_change(call, failure.call) for call in between)


def _fix(
    context: fixes.Context, failure: Failure, known: _Known, ruled_out: _RuledOut
) -> dict[str, Any] | None:
    call, working, between = failure.call, None, None
    current = call
    same, first = known.of_head[call.head], known.place[call.number] + 1
    for place in range(first, min(len(same), first + RETRIES_MAX)):
        later = same[place]
        if later.number - current.number > RETRY_CALLS_MAX:
            break
        if later not in ruled_out and _works(later):
            if calls.is_same(call, later):
                return (
                    _steps(context, call, later, ruled_out) if not known.came_back(failure, later) else None
                )
            if calls.is_variant(call, later):
                working = later
            break
        if later in ruled_out and (calls.is_variant(current, later) or calls.is_same(current, later)):
            current = later
            if between is None and known.key_at.get(later.number) not in (None, failure.signature.key):
                between = later
    if working is None or known.came_back(failure, working):
        return None
    return fixes.of(context, call, working, between)


def _works(call: calls.Call) -> bool:
    return call.output is not None and (call.output.exit_code == 0 or bool(call.text.strip()))


def _may_change(call: calls.Call, failing: calls.Call) -> bool:
    return bool(call.command) and not calls.is_same(call, failing)


def is_change(call: calls.Call) -> bool:
    """Whether a call looks like a change to the workspace.

    A patch, arguments that carry lines of content, or a command line that writes its output to a file.
    """
    if call.output is not None and call.output.is_error:
        return False
    if call.command and _REDIRECTED.search(_QUOTED.sub("", call.command[:4_000])):
        return True
    return call.tool == "apply_patch" or any(
        value.count("\n") >= 1 and len(value) >= 40 for _, value in call.leaves
    )


def _steps(
    context: fixes.Context, failing: calls.Call, working: calls.Call, ruled_out: _RuledOut
) -> dict[str, Any] | None:
    """The same call worked after something else was changed: the fix is what was done in between."""
    between = context.calls[failing.number + 1 : working.number]
    done = [call for call in between if is_change(call) and call not in ruled_out]
    return {"after": done, "item": working.index} if done else None
