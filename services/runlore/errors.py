"""Every error that Runlore raises, grouped by what the one who catches it does about it.

Each class has a `kind`: a stable, append-only code. People match on it, dead letters carry it as their
reason, `--json` prints it. A kind is never renamed. The class docstring is the default message.

=====================  =============================================  ==========
group                  what a handler does                            exit code
=====================  =============================================  ==========
`InvalidInput`         tell the person what to change                 2
`NotFound`             tell what was looked for, and what there is    3
`Refused`              tell why the state forbids it                  4
`Poison`               dead letter, then commit the offset            2
`Retryable`            try again, in place, within a budget           5
`Blocked`              pause what met it; dead-letter nothing         5
`NoAnswer`             let the rules stand for this input             5
`Fatal`                stop what met it: a project's work, else all   6
=====================  =============================================  ==========
"""

from __future__ import annotations

from typing import Any, ClassVar


class RunloreError(Exception):
    """Something went wrong in Runlore."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None, **context: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = hint
        self.context = context
        super().__init__(self.message)

    def as_dict(self) -> dict[str, Any]:
        """The shape that `--json` prints and that a dead letter carries: kind, message, hint, context."""
        out: dict[str, Any] = {"kind": self.kind, "message": self.message}
        if self.hint:
            out["hint"] = self.hint
        if self.context:
            out["context"] = {key: str(value) for key, value in self.context.items()}
        return out


# --- for a person -----------------------------------------------------------------------------------


class InvalidInput(RunloreError):
    """The input is not valid."""

    kind = "invalid_input"
    exit_code = 2


class HostileArchive(InvalidInput):
    """The archive holds what no honest workspace holds."""

    kind = "hostile_archive"


class BadArchive(InvalidInput):
    """The archive is damaged, cut off, or no tar."""

    kind = "bad_archive"


class ArchiveLimit(InvalidInput):
    """The archive is beyond a limit."""

    kind = "archive_limit"


class BadMapping(InvalidInput):
    """The mapping file does not say what a source needs."""

    kind = "bad_mapping"


class BadModels(InvalidInput):
    """The file of models does not say what it may say."""

    kind = "bad_models"


class BodyTooLarge(InvalidInput):
    """The request's body is beyond the limit."""

    kind = "body_too_large"


class BadRange(InvalidInput):
    """The range that was asked for is not in what there is."""

    kind = "bad_range"


class NotFound(RunloreError):
    """There is no such thing."""

    kind = "not_found"
    exit_code = 3


class SnapshotNotFound(NotFound):
    """There is no such snapshot in this project."""

    kind = "snapshot_not_found"


class PathNotFound(NotFound):
    """There is no such path in the snapshot."""

    kind = "path_not_found"


class Refused(RunloreError):
    """The present state does not allow this."""

    kind = "refused"
    exit_code = 4


class RunNotTaken(Refused):
    """The run is held for review, or dead: memory does not have it without a person."""

    kind = "run_not_taken"


class HomeInUse(Refused):
    """Another runlore process runs the stages of this home."""

    kind = "home_in_use"


class ForeignLetter(Refused):
    """The event is one of a team's own topic: only its mapping can take it up again."""

    kind = "foreign_letter"


class TargetModified(Refused):
    """The target holds files that Runlore did not write."""

    kind = "target_modified"


class UnsafeTarget(Refused):
    """The target would make Runlore write outside of it."""

    kind = "unsafe_target"


class NativeSnapshot(Refused):
    """The snapshot is a provider's own reference: only that provider's sandbox can restore it."""

    kind = "native_snapshot"


class RestoreFailed(Refused):
    """The snapshot could not be written here; the target is as it was."""

    kind = "restore_failed"


class SeedExpired(Refused):
    """The seed's term has ended."""

    kind = "seed_expired"


class Erased(Refused):
    """It was erased."""

    kind = "erased"


class OutboxFull(Refused):
    """The outbox beside the agent holds as much as it may."""

    kind = "outbox_full"


class SpendLimit(Refused):
    """What was allowed for this is spent; what was paid for is kept."""

    kind = "spend_limit"


class MailRefused(Refused):
    """The mail server does not take the message, or us."""

    kind = "mail_refused"


class IdempotencyConflict(Refused):
    """Another body came under the same idempotency key."""

    kind = "idempotency_conflict"


class ProblemsFound(RunloreError):
    """The check found problems."""

    kind = "problems_found"
    exit_code = 6


# --- poison: an event that can never take effect as it is ---------------------------------------------


class Poison(RunloreError):
    """The event can not take effect."""

    kind = "poison"
    exit_code = 2


class BadJson(Poison):
    """The event is not valid JSON."""

    kind = "bad_json"


class InvalidEvent(Poison):
    """The event does not follow its schema."""

    kind = "invalid_event"


class UnknownType(Poison):
    """No stage reads events of this type."""

    kind = "unknown_type"


class UnknownVersion(Poison):
    """The event's type is known, but not in this version."""

    kind = "unknown_version"


class InvalidId(Poison):
    """An id is not one that Runlore accepts."""

    kind = "invalid_id"


class InvalidRecord(Poison):
    """The run's record is not an SDK rollout line."""

    kind = "invalid_record"


class EventTooLarge(Poison):
    """The event is larger than the limit."""

    kind = "event_too_large"


class RecordTooLarge(Poison):
    """The run's record is larger than the limit."""

    kind = "record_too_large"


class ClaimMissing(Poison):
    """The object that the event's claim names is not in its project."""

    kind = "claim_missing"


class ClaimMismatch(Poison):
    """The object that the event's claim names has other bytes than the claim says."""

    kind = "claim_mismatch"


class RunConflict(Poison):
    """The same run and attempt was recorded before with other bytes."""

    kind = "run_conflict"


class EditBaseUnknown(Poison):
    """What the edit began from is not what Runlore knows: its seed, its revision or the file's hash does not fit."""

    kind = "edit_base_unknown"


class ArchiveRefused(Poison):
    """The workspace's archive can not become a snapshot."""

    kind = "archive_refused"


class FolderRefused(Poison):
    """The workspace's folder is not below one that this stage may read."""

    kind = "folder_refused"


class SnapshotMissing(Poison):
    """The snapshot that the event names is not in its project, or not whole."""

    kind = "snapshot_missing"


class SnapshotExpired(Poison):
    """The snapshot that the event names was saved so long ago that parts of it may be gone."""

    kind = "snapshot_expired"


class SnapshotConflict(Poison):
    """The same run and attempt left another snapshot before."""

    kind = "snapshot_conflict"


class BranchesFull(Poison):
    """The rollout has as many branches as it may; merge or delete some, then redrive."""

    kind = "branches_full"


# --- poison: a foreign event that its mapping can not make a run of ---------------------------------------


class Undecodable(Poison):
    """The foreign event could not be decoded."""

    kind = "undecodable"


class MissingRollout(Poison):
    """The foreign event does not say which conversation it belongs to."""

    kind = "missing_rollout"


class MissingField(Poison):
    """The foreign event lacks what its mapping needs."""

    kind = "missing_field"


class BadField(Poison):
    """A field of the foreign event is not of the kind that its mapping needs."""

    kind = "bad_field"


class BadMessages(Poison):
    """The foreign event's messages can not be read as a conversation."""

    kind = "bad_messages"


class NotAllowed(Poison):
    """The foreign event names a project or a memory that its mapping does not allow."""

    kind = "not_allowed"


class Unmappable(Poison):
    """The mapping failed on this event; it is kept until one that can read it takes it up again."""

    kind = "unmappable"


class ObjectRefused(Poison):
    """The foreign event names an object that is not below an allowed prefix."""

    kind = "object_refused"


class ObjectMissing(Poison):
    """The object that the foreign event names is not there."""

    kind = "object_missing"


class ObjectTooLarge(Poison):
    """The object that the foreign event names is larger than the limit."""

    kind = "object_too_large"


# --- the store ----------------------------------------------------------------------------------------


class Retryable(RunloreError):
    """A passing fault; trying again may help."""

    kind = "retryable"
    exit_code = 5


class StoreUnavailable(Retryable):
    """The store did not answer (503, time-out); nothing is known to have landed."""

    kind = "store_unavailable"


class WriteConflict(Retryable):
    """The store refused a concurrent conditional write (409): nothing landed."""

    kind = "write_conflict"


class OutcomeUnknown(Retryable):
    """The reply to a write was lost: it may have landed, may land later, or never."""

    kind = "outcome_unknown"


class SourceUnavailable(Retryable):
    """What a source needs besides its topic (an object, a schema registry) did not answer."""

    kind = "source_unavailable"


class BusUnavailable(Retryable):
    """The bus did not answer."""

    kind = "bus_unavailable"


class ServiceUnavailable(Retryable):
    """The lookup service can not be reached, or answers with a fault that may pass."""

    kind = "service_unavailable"


class PreconditionFailed(RunloreError):
    """Somebody else's write is there (412): read again before anything else."""

    kind = "precondition_failed"
    exit_code = 5


class HeadMoved(Retryable):
    """The head moved while its next version was made; start again from the head."""

    kind = "head_moved"


class CommitTooLate(Retryable):
    """The write began so long ago that what it refers to may be gone; start again from the head."""

    kind = "commit_too_late"


class WaitTimeout(Retryable):
    """What was waited for did not come within the time."""

    kind = "wait_timeout"


class SeedBehind(Retryable):
    """What is there now is older than the seed that was seen last."""

    kind = "seed_behind"


class ModelUnavailable(Retryable):
    """The model's endpoint did not answer, or answered with a fault that may pass."""

    kind = "model_unavailable"


class ModelBusy(Retryable):
    """The model's endpoint takes no more requests for now (429)."""

    kind = "model_busy"


class MailUnavailable(Retryable):
    """The mail server can not be reached, or asks to try again later."""

    kind = "mail_unavailable"


class Overloaded(Retryable):
    """The service does as much of this at once as it may."""

    kind = "overloaded"


class RateLimited(Retryable):
    """The project, or the key, asked for this as often as it may in this minute."""

    kind = "rate_limited"


class TooSlow(Retryable):
    """The client let the service wait for too long."""

    kind = "too_slow"


class Blocked(RunloreError):
    """A permission or a credential is missing; a person must act."""

    kind = "blocked"
    exit_code = 5
    of_stage: ClassVar[bool] = False
    """Whether it holds a whole stage: else only the project in whose work it came up, until others meet it too."""


class Unauthorized(Blocked):
    """The request has no key that is good."""

    kind = "unauthorized"


class Forbidden(Blocked):
    """The key does not allow this."""

    kind = "forbidden"


class ModelBlocked(Blocked):
    """The model's endpoint takes nothing from us until a person acts: the key, the quota, the model's name."""

    kind = "model_blocked"


class RunStandsStill(Blocked):
    """What the run waits for next waits itself: for budget, or for a person."""

    kind = "run_stands_still"


class OverBudget(Blocked):
    """A budget does not allow another call to the model; what waits for it is deferred."""

    kind = "over_budget"


# --- a model ------------------------------------------------------------------------------------------


class NoAnswer(RunloreError):
    """The model gave no answer that can be used; asking the same again would give the same."""

    kind = "no_answer"
    exit_code = 5


class ModelRefused(NoAnswer):
    """The model, or a filter in front of it, refuses to answer this."""

    kind = "model_refused"


class BadAnswer(NoAnswer):
    """The model's answer is cut off, no JSON, or not of the shape that was asked for."""

    kind = "bad_answer"


class AskRejected(NoAnswer):
    """The endpoint does not take this request: it is too long, or holds what the endpoint does not know."""

    kind = "ask_rejected"


class Fatal(RunloreError):
    """An invariant does not hold; going on could do damage."""

    kind = "fatal"
    exit_code = 6


class Corrupt(Fatal):
    """An object's bytes are not the ones its name or its reference promises."""

    kind = "corrupt"


class HeadLost(Fatal):
    """A head is not there, while what it named is; `runlore repair` makes it again."""

    kind = "head_lost"


class GuardFailed(RunloreError):
    """A new revision did not pass the guards."""

    kind = "guard_failed"
