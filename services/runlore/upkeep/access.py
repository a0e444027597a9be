"""Access: the keys of the lookup service, and the secret that it signs with. Stored as hashes; a key is shown once.

A key belongs to one project and has one scope. It is an object of its own, so that a request costs one GET at most,
and is never deleted: a revoked one stays, with its time, so that its id says for ever whose it was.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope, ids
from runlore.store import port

FORMAT = "runlore.key/1"
SECRET_FORMAT = "runlore.secret/1"
READ, WRITE, ADMIN = "read", "write", "admin"
SCOPES = (READ, WRITE, ADMIN)
"""Each includes the one before it."""
NAME_CHARS_MAX = 100
SECRET_BYTES = 32
PUT_ATTEMPTS_MAX = 8
SEED_SIGNING = "seed-signing"

_TOKEN = re.compile(r"rl_([0-9a-f]{32})_([0-9a-f]{64})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Key:
    """One key as it is kept."""

    id: str
    project: str
    scope: str
    name: str
    sha256: str
    created_at: str
    revoked_at: str | None = None
    account: str | None = None
    """The service account that it belongs to: it opens nothing that the account does not (`upkeep/organization.py`)."""
    expires_at: str | None = None

    def allows(self, scope: str) -> bool:
        return SCOPES.index(scope) <= SCOPES.index(self.scope)

    def opens_with(self, secret: str) -> bool:
        """Whether `secret` is this key's, compared in constant time."""
        return hmac.compare_digest(self.sha256, hashed(secret))

    def is_over(self, now: dt.datetime) -> bool:
        """Whether it was revoked, or its time is up."""
        return self.revoked_at is not None or has_passed(self.expires_at, now)

    def shown(self) -> dict[str, Any]:
        """What a list tells of it: everything but the hash."""
        return {name: value for name, value in asdict(self).items() if name != "sha256"}


def hashed(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def has_passed(at: str | None, now: dt.datetime) -> bool:
    return at is not None and dt.datetime.fromisoformat(at) <= now


def checked_name(name: str, what: str) -> str:
    """`name` as it is kept, of a key or of whom it is for. Raises `errors.InvalidInput`."""
    if not name.strip() or len(name) > NAME_CHARS_MAX or ids.has_control(name):
        raise errors.InvalidInput(f"{what} needs a name of 1 to {NAME_CHARS_MAX} characters")
    return name.strip()


def parse(token: str) -> tuple[str, str] | None:
    """(key id, secret) of a token as it is sent; None where it is none."""
    found = _TOKEN.fullmatch(token)
    return (found[1], found[2]) if found else None


async def create(
    store: port.ObjectStore,
    project: str,
    *,
    scope: str,
    name: str,
    account: str | None = None,
    expires_at: str | None = None,
) -> tuple[Key, str]:
    """Make a key; it, and the token that is shown once. Raises `errors.InvalidInput`, `errors.InvalidId`."""
    ids.check_name(project, "project")
    if scope not in SCOPES:
        raise errors.InvalidInput(f"{scope!r} is no scope", hint=f"scopes: {', '.join(SCOPES)}")
    name = checked_name(name, "a key")
    secret = clock.secret_hex(SECRET_BYTES)
    for attempt in range(PUT_ATTEMPTS_MAX):
        # A fresh id each time: after a lost reply a key may stand whose secret nobody ever saw.
        key = Key(
            *(clock.new_id(), project, scope, name, hashed(secret), clock.now_iso()),
            account=account,
            expires_at=expires_at,
        )
        try:
            await store.put_if_absent(keys.access_key(key.id), _body(key))
            return key, f"rl_{key.id}_{secret}"
        except (errors.WriteConflict, errors.OutcomeUnknown, errors.PreconditionFailed):
            await clock.sleep(0.01 * 2**attempt * (0.5 + clock.jitter()))
    raise errors.StoreUnavailable("the key could not be put")


def _body(key: Key) -> bytes:
    # Without what it does not have: a replica of the version before knows no such fields.
    own = {name: value for name, value in asdict(key).items() if value is not None or name == "revoked_at"}
    return envelope.dump({"format": FORMAT, **own})


async def read(store: port.ObjectStore, key_id: str) -> Key | None:
    """The key with this id, revoked or not. Raises `errors.Corrupt`."""
    if _ID.fullmatch(key_id) is None:
        return None
    stored = await store.get(keys.access_key(key_id))
    return None if stored is None else _parsed(keys.access_key(key_id), stored.body)


def redacted(key_id: str, prefix: str = "rl") -> str:
    """What a list shows in place of a token: enough of its id to find it again, and nothing of its secret."""
    return f"{prefix}_{key_id[:12]}...{key_id[-4:]}_..."


def _parsed(where: str, raw: bytes) -> Key:
    try:
        body = envelope.kept(raw)
        if body.pop("format") == FORMAT and f"/{body['id']}.json" in where and _is_whole(key := Key(**body)):
            return key
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise errors.Corrupt(f"the access key {where} is not one")


def _is_whole(key: Key) -> bool:
    """Whether every field can be used as it is. Raises `ValueError` or `TypeError` where a time is none."""
    for at in (key.created_at, key.revoked_at, key.expires_at):
        if at is not None and dt.datetime.fromisoformat(at).tzinfo is None:
            return False
    texts = (key.id, key.project, key.name, key.created_at, *(() if key.account is None else (key.account,)))
    is_hash = isinstance(key.sha256, str) and _HASH.fullmatch(key.sha256) is not None
    return is_hash and key.scope in SCOPES and all(isinstance(one, str) for one in texts)


async def list_all(store: port.ObjectStore, project: str) -> list[Key]:
    """Every key of a project, oldest first."""
    names = [row.key async for row in store.list(keys.access_keys())]
    found = await store.get_many(names)
    all_keys = [_parsed(name, one.body) for name, one in zip(names, found, strict=True) if one is not None]
    return [one for one in all_keys if one.project == project]


async def revoke(store: port.ObjectStore, project: str, key_id: str) -> Key:
    """End a key; as it is where it has ended. Raises `errors.NotFound`, also for another project's key."""
    where = keys.access_key(key_id)
    for attempt in range(PUT_ATTEMPTS_MAX):
        stored = await store.get(where) if _ID.fullmatch(key_id) else None
        key = _parsed(where, stored.body) if stored else None
        if stored is None or key is None or key.project != project:
            raise errors.NotFound(
                f"project {project} has no key {key_id!r}", hint="`runlore keys list` lists them"
            )
        if key.revoked_at is not None:
            return key
        ended = Key(**{**asdict(key), "revoked_at": clock.now_iso()})
        try:
            await store.compare_and_set(where, _body(ended), stored.etag)
            return ended
        except (errors.WriteConflict, errors.OutcomeUnknown, errors.PreconditionFailed):
            await clock.sleep(0.01 * 2**attempt * (0.5 + clock.jitter()))
    raise errors.StoreUnavailable("the key could not be revoked: it may still be good")


async def secret(store: port.ObjectStore, name: str) -> bytes:
    """The deployment's own secret of this name, drawn by whoever asks first. Raises `errors.Corrupt`."""
    where = keys.secret(name)
    for attempt in range(PUT_ATTEMPTS_MAX):
        stored = await store.get(where)
        if stored is not None:
            return _secret_of(where, stored.body)
        drawn: Mapping[str, Any] = {
            "format": SECRET_FORMAT,
            "secret": clock.secret_hex(SECRET_BYTES),
            "created_at": clock.now_iso(),
        }
        try:
            await store.put_if_absent(where, envelope.dump(drawn))
        except (errors.WriteConflict, errors.OutcomeUnknown, errors.PreconditionFailed):
            await clock.sleep(0.01 * 2**attempt * (0.5 + clock.jitter()))
    raise errors.StoreUnavailable(f"the secret {name} could not be put")


def _secret_of(where: str, raw: bytes) -> bytes:
    try:
        body = envelope.kept(raw)
        found = bytes.fromhex(body["secret"])
        if body["format"] == SECRET_FORMAT and len(found) == SECRET_BYTES:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.Corrupt(
        f"{where} is no secret", hint="put the one of a backup there; seeds given out need it"
    )
