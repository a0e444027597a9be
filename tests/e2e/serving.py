"""`runlore serve` on a home, as a client sees it: beside `runlore up`, or with the whole pipeline in it (`--up`)."""

from __future__ import annotations

import re
import socket
import subprocess

import homes

_TOLD = re.compile(r"serves (http://[\w.:\[\]]+)")


class Served:
    """The lookup service on a home; `end` and `start` again: the same address, as after a restart."""

    def __init__(self, home, *options):
        self.home, self._options = home, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = None
        self._log = home.root.parent / "serve.log"

    def start(self):
        """Start it, and return once it listens."""
        with open(self._log, "wb") as log:
            words = ("serve", "--port", self.port, *self._options)
            # Into a file: a pipe that nobody reads would fill, and stop it.
            self._process = self.home.start(*words, stdout=subprocess.DEVNULL, stderr=log)
        homes.wait_until(lambda: self._process.poll() is not None or self._has_begun(), "serve to listen")
        assert self._process.poll() is None, self._log.read_text()
        return self

    def end(self):
        """Kill it: whoever asks meets a closed port."""
        homes.kill(self._process)

    def _has_begun(self):
        told = _TOLD.search(self._log.read_text())
        return told is not None and told[1] == self.url
