"""Where a link of a tree leads, judged from the tree alone: through its other links, and never by looking at a disk."""

from __future__ import annotations

from collections.abc import Mapping

LINKS_FOLLOWED_MAX = 40
"""Links that one path leads through, as for the kernel."""


def stays_inside(path: bytes, target: bytes, links: Mapping[bytes, bytes]) -> bool:
    """Whether a link at `path` stays below the root; `links` are those of the tree, which it may lead through.

    By its words alone `d/up/../x` stays inside; where `d/up` is a link to the root, it does not.
    """
    if target.startswith(b"/"):
        return False
    at, rest = path.split(b"/")[:-1], target.split(b"/")[::-1]
    followed = 0
    while rest:
        part = rest.pop()
        if part == b"..":
            if not at:
                return False
            at.pop()
        elif part not in (b"", b"."):
            at.append(part)
            through = links.get(b"/".join(at)) if any(one not in (b"", b".") for one in rest) else None
            if through is None:
                continue
            followed += 1
            if through.startswith(b"/") or followed > LINKS_FOLLOWED_MAX:
                return True  # Left out itself, or a circle: there is nothing behind it.
            at.pop()
            rest += through.split(b"/")[::-1]
    return True
