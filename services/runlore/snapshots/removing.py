"""Removing a tree that a restore wrote or replaces, whatever the modes of its directories. Blocking."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any


def remove(path: bytes) -> None:
    """Remove a tree that we wrote, whatever the modes of its directories; never through a link."""
    tried: set[bytes] = set()

    def again(function: Any, failing: Any, _: Any) -> None:
        with contextlib.suppress(OSError):
            parent = os.path.dirname(failing)
            os.chmod(parent, 0o700)
            if not os.path.islink(failing) and os.path.isdir(failing):
                if failing not in tried:
                    tried.add(failing)
                    os.chmod(failing, 0o700)
                    shutil.rmtree(failing, onerror=again)
            else:
                os.unlink(failing)

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, onerror=again)
    elif os.path.lexists(path):
        os.unlink(path)
