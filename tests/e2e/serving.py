"""`runlore serve` on a home, as a client sees it: beside `runlore up`, or with the whole pipeline in it (`--up`)."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request

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
        assert self._process.poll() is None, self.log()
        return self

    def end(self):
        """Kill it: whoever asks meets a closed port."""
        homes.kill(self._process)

    def drain(self):
        """Tell it to stop; its exit code, once what is under way has ended."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=homes.WAIT_SECONDS_MAX)
        assert "Traceback" not in self.log(), self.log()
        return code

    def log(self):
        return self._log.read_text()

    def ask(self, path, body=None, headers=None, method=None):
        """(status, body, headers) of one request."""
        request = urllib.request.Request(self.url + path, data=body, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=homes.WAIT_SECONDS_MAX) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read(), exc.headers

    def _has_begun(self):
        told = _TOLD.search(self.log())
        return told is not None and told[1] == self.url
