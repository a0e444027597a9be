"""Which calls failed, and which change made them work: by structure and behaviour, in any language.

A call failed if the protocol says so (exit code, status, error object), if its answer ends as a stack trace
does, or if the agent behaved as after a failure: its answer had not the shape that this tool's answers have,
and the agent asked again with a few arguments changed and then got that shape. Where neither shows, the call
is not called a failure: a missed lesson costs less than a false one.

A pair (failure, fix) needs the same head, changed arguments, an answer that is no failure, and that the
failure did not come back in the run. A call that works unchanged a second time is flaky, and teaches nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

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


def _by_behaviour(same: list[calls.Call], known: dict[int, str]) -> dict[int, str]:
    """Reasons for the calls of one head that its own other answers tell."""
    open_calls = [call for call in same if call.number not in known and _is_judged(call)]
    kinds = Counter(calls.shape(call) for call in open_calls)
    structured = kinds["object"] + kinds["list"]
    out: dict[int, str] = {}
    for call in open_calls:
        if calls.shape(call) == "text":
            out |= _refusal(call, open_calls, structured)
        elif calls.shape(call) == "object":
            out |= _odd_object(call, open_calls)
    return out


def _is_judged(call: calls.Call) -> bool:
    # A shell that answers exit codes has said all there is to say.
    return call.output is not None and call.output.exit_code is None


def _refusal(call: calls.Call, same: list[calls.Call], structured: int) -> dict[int, str]:
    is_short = len(call.text) <= SHORT_CHARS_MAX
    if structured and is_short:
        # This tool answers data, and here it answered a short sentence.
        return {call.number: "shape"}
    answer = _answer_to(call, same)
    is_other = answer is not None and calls.template(answer) != calls.template(call)
    if is_other and _is_usual(answer, same) and _is_always_retried(call, same):
        return {} if _is_always_retried(answer, same) else {call.number: "retried"}
    # Nothing in this run tells. Kept as a question for the other runs, if it looks like a sentence.
    is_open = is_short and len(same) <= 4 and not call.command
    return {call.number: "maybe"} if is_open and len(call.text.strip()) >= 6 else {}


def _odd_object(call: calls.Call, same: list[calls.Call]) -> dict[int, str]:
    """An object whose keys are not this tool's usual ones, asked again and then answered as usual."""
    answer = _answer_to(call, same)
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
    if overlap >= 0.34 or len(answer.text) <= len(call.text) or not _is_always_retried(call, same):
        return {}
    return {call.number: "shape"}


def _answer_to(call: calls.Call, same: list[calls.Call]) -> calls.Call | None:
    """The last variant of `call` in the chain of retries that follows it."""
    current, found = call, None
    for later in same:
        if later.number <= current.number or later.number - current.number > RETRY_CALLS_MAX:
            continue
        if calls.is_variant(current, later) or calls.is_same(current, later):
            current = found = later
        else:
            break
    return found if found is not None and not calls.is_same(call, found) else None


def _is_usual(answer: calls.Call, same: list[calls.Call]) -> bool:
    """Whether this tool gave such an answer at least twice, or one clearly richer than the refused one."""
    kind = calls.template(answer)
    return sum(calls.template(call) == kind for call in same) >= 2


def _is_always_retried(call: calls.Call, same: list[calls.Call]) -> bool:
    """Whether the agent tried again after every answer of this shape: its own way to say that it failed."""
    kind = calls.template(call)
    for place, one in enumerate(same):
        if calls.template(one) == kind:
            following = same[place + 1] if place + 1 < len(same) else None
            if following is None or following.number - one.number > RETRY_CALLS_MAX:
                return False
            if not (calls.is_variant(one, following) or calls.is_same(one, following)):
                return False
    return True


# --- which change made them work --------------------------------------------------------------------


def _with_fixes(context: fixes.Context, found: list[Failure], reasons: dict[int, str]) -> list[Failure]:
    failed = set(reasons)
    unsure = {number for number, reason in reasons.items() if reason == "maybe"}
    by_head: dict[str, list[calls.Call]] = defaultdict(list)
    for call in context.calls:
        by_head[call.head].append(call)
    out = []
    for failure in found:
        same = by_head[failure.call.head]
        if _is_flaky(failure, context.calls, same, failed):
            out.append(replace(failure, is_flaky=True))
        else:
            # An unsure failure may be cured by an answer that is as unsure, if it is another sentence.
            kind = calls.template(failure.call)
            others = {call.number for call in same if call.number in unsure and calls.template(call) != kind}
            ruled_out = failed if failure.is_sure else failed - others
            out.append(replace(failure, fix=_fix(context, failure, found, same, ruled_out)))
    flaky = {(one.call.head, one.signature.key) for one in out if one.is_flaky}
    return [
        replace(one, fix=None, is_flaky=True) if (one.call.head, one.signature.key) in flaky else one
        for one in out
    ]


def _is_flaky(failure: Failure, made: list[calls.Call], same: list[calls.Call], failed: set[int]) -> bool:
    """Whether the very same call worked later although nothing had been changed in between.

    What another command line did in between can not be known, so after one the rules abstain.
    """
    for later in same:
        is_later_success = later.number > failure.call.number and later.number not in failed and _works(later)
        if is_later_success and calls.is_same(failure.call, later):
            between = made[failure.call.number + 1 : later.number]
            return not any(is_change(call) or _may_change(call, failure.call) for call in between)
    return False


def _fix(
    context: fixes.Context, failure: Failure, found: list[Failure], same: list[calls.Call], failed: set[int]
) -> dict[str, Any] | None:
    call, working, between = failure.call, None, None
    current = call
    for later in same:
        if later.number <= current.number:
            continue
        if later.number - current.number > RETRY_CALLS_MAX:
            break
        if later.number not in failed and _works(later):
            if calls.is_same(call, later):
                return _steps(context, call, later, failed) if not _came_back(failure, later, found) else None
            if calls.is_variant(call, later):
                working = later
            break
        if later.number in failed and (calls.is_variant(current, later) or calls.is_same(current, later)):
            current = later
            if between is None and _signature_at(found, later) not in (None, failure.signature.key):
                between = later
    if working is None or _came_back(failure, working, found):
        return None
    return fixes.of(context, call, working, between)


def _works(call: calls.Call) -> bool:
    return call.output is not None and (call.output.exit_code == 0 or bool(call.text.strip()))


def _signature_at(found: list[Failure], call: calls.Call) -> str | None:
    return next((one.signature.key for one in found if one.call.number == call.number), None)


def _came_back(failure: Failure, working: calls.Call, found: list[Failure]) -> bool:
    mine = (failure.call.head, failure.signature.key)
    return any(
        (one.call.head, one.signature.key) == mine and one.call.number > working.number for one in found
    )


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
    context: fixes.Context, failing: calls.Call, working: calls.Call, failed: set[int]
) -> dict[str, Any] | None:
    """The same call worked after something else was changed: the fix is what was done in between."""
    between = context.calls[failing.number + 1 : working.number]
    done = [call for call in between if is_change(call) and call.number not in failed]
    return {"after": done, "item": working.index} if done else None
