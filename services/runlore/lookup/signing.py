"""Signed seed ids: what leaves the deployment says who made it.

A seed id names a subject and a rollout, and so what its files may show (invariant 9). Whoever reads the store may
write any id; a client of the lookup service may use those alone that the service gave out. So they carry an HMAC:
`s1.<seed>.<mac>`. The command line reads the same ids and does not ask for it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from runlore import errors
from runlore.lookup import seeds

MAC_BYTES = 24
FOREIGN = "the seed is none that this service gave out for this project"


def sign(secret: bytes, seed: seeds.Seed) -> str:
    """The seed's id, signed."""
    return f"{seed.id}.{_mac(secret, seed.id)}"


def _mac(secret: bytes, seed_id: str) -> str:
    raw = hmac.digest(secret, seed_id.encode(), hashlib.sha256)[:MAC_BYTES]
    return base64.urlsafe_b64encode(raw).decode()


def open_signed(secret: bytes, project: str, signed: str, *, ended: bool = False) -> seeds.Seed:
    """The seed of a signed id of `project`; `ended`: also one whose term has ended.

    Raises `errors.Forbidden` for another project's and for one that was made up, `errors.SeedExpired`.
    """
    seed_id, _, mac = signed.rpartition(".")
    if not hmac.compare_digest(_mac(secret, seed_id).encode(), mac.encode("utf-8", "replace")):
        raise errors.Forbidden(FOREIGN)
    seed = seeds.parse(seed_id, ended=ended)
    if seed.project != project:
        raise errors.Forbidden(FOREIGN)
    return seed
