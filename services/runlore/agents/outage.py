"""An outage of the lookup service: once one was seen, the runs after it do not wait for it as the first one did.

    in order ── a seed fails ──▶ out ── a seed comes ──▶ in order

While it is out a run asks one small question first, with a share of its deadline; only if that is answered does it ask
for its seed as ever. If that hangs too, no run asks again for a while. Nothing runs in the background: an
idle program asks nobody, and a loop that ends takes nothing with it.
"""

from __future__ import annotations

import threading

from runlore import clock, errors

PROBE_SHARE = 0.2
"""The share of its deadline that a run waits for the first answer of a service that is out."""
PAUSE_SECONDS = 10.0
"""How long no run asks a service that hung; the longest that runs stay without a seed once it is back, in seconds."""


class Outage:
    """What the runs of one `Runlore` know of the service. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_on = False
        self._pause_ends = 0.0

    @property
    def is_on(self) -> bool:
        return self._is_on

    def may_probe(self) -> bool:
        """Whether this run may ask, while the service is out; of several at once one may."""
        with self._lock:
            if clock.monotonic() < self._pause_ends:
                return False
            self._pause_ends = clock.monotonic() + PAUSE_SECONDS
            return True

    def seen(self, exc: BaseException, *, waited_seconds: float, deadline_seconds: float) -> bool:
        """A seed that did not come, and how long a run waited for it; whether that is to be told."""
        with self._lock:
            is_new = not self._is_on
            self._is_on = isinstance(exc, TimeoutError | errors.ServiceUnavailable)
            # What fails at once may be asked again at once, so that the first run after an outage is seeded. What was
            # slow for the first time may have been slow for that run alone.
            pauses = not is_new and waited_seconds >= deadline_seconds * PROBE_SHARE
            # From when it was asked: whoever is back after that is asked in time.
            self._pause_ends = clock.monotonic() - waited_seconds + PAUSE_SECONDS if pauses else 0.0
            # Where it answers, and says what is wrong with it, that is none.
            return is_new or not self._is_on

    def over(self) -> bool:
        """A seed came; whether the service was out."""
        with self._lock:
            was_on, self._is_on, self._pause_ends = self._is_on, False, 0.0
            return was_on
