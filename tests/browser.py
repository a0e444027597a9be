"""A real Chromium without a window, driven over a pipe: what a page looks like, and what runs in it.

It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) over two file descriptors, so it
needs no port, no driver and no library. Where there is no Chromium and none can be fetched (infra/dev/chromium.py) its
tests are skipped, unless `RUNLORE_TEST_REQUIRE` names `chromium`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

import servers

ANSWER_SECONDS_MAX = 60
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    # Nothing but this machine is reached, whatever a page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

WIRED = """
import os, sys
high = [os.dup(os.dup(os.dup(int(one)))) for one in sys.argv[1:3]]
for one, place in zip(high, (3, 4)):
    os.dup2(one, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts the browser with commands on 3 and answers on 4; duplicates lie above both, so neither is written over."""


def found():
    """Where Chromium is, fetched if need be; skips where there can be none."""
    from infra.dev import chromium

    servers.need("chromium", chromium.missing())
    try:
        return chromium.fetch()
    except RuntimeError as exc:  # As where there is no network.
        servers.need("chromium", str(exc))


@contextlib.contextmanager
def browser(folder):
    """A browser with an empty profile in `folder`."""
    path = found()
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    process = subprocess.Popen(
        [
            *(sys.executable, "-I", "-c", WIRED, str(theirs_in), str(theirs_out)),
            *(path, *OPTIONS, f"--user-data-dir={folder}/profile", "about:blank"),
        ],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        started = Browser(ours_out, ours_in)
        try:
            started.call("Browser.getVersion")
        except (AssertionError, BrokenPipeError):
            servers.need("chromium", f"{path} does not start here: a library that it needs may be missing")
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours_out)
        os.close(ours_in)


class Browser:
    """The browser's end of the pipe."""

    def __init__(self, out, into):
        self._out, self._in, self._left, self._number = out, into, b"", 0
        self.events = []

    def call(self, method, session=None, **params):
        """What a command answers; what happened meanwhile goes to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(
            self._out, json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0"
        )
        while True:
            told = self._next()
            if told.get("id") == self._number:
                if "error" in told:
                    raise AssertionError(f"{method}: {told['error']}")
                return told["result"]
            self.events.append(told)

    def wait(self, method, session, since=0, **wanted):
        """The first event of this name after so many, with these fields."""
        at = since
        while True:
            for told in self.events[at:]:
                at += 1
                if told.get("method") == method and told.get("sessionId") == session:
                    params = told["params"]
                    if wanted.items() <= params.items():
                        return params
            self.events.append(self._next())

    def _next(self):
        until = time.monotonic() + ANSWER_SECONDS_MAX
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            piece = os.read(self._in, 1 << 20) if ready else b""
            if not piece:
                raise AssertionError("the browser does not answer")
            self._left += piece
        raw, _, self._left = self._left.partition(b"\0")
        return json.loads(raw)

    def page(self, *, width=1280, height=900, dark=False, script=True):
        """A new page of this size."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, width, height, dark, script)


class Page:
    """One page."""

    def __init__(self, owner, session, width, height, dark, script):
        self._owner, self._session, self.width, self.height = owner, session, width, height
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        # As if it were in front, also where another page was made after it: what is not in front has no focus.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        if not script:
            self.call("Emulation.setScriptExecutionDisabled", value=True)

    def call(self, method, **params):
        return self._owner.call(method, self._session, **params)

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def go(self, url):
        """Load an address, to its end."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, (url, answer)
        # None where it leads to another place on the same page.
        if "loaderId" in answer:
            self._loaded(answer["loaderId"])

    def _loaded(self, loader):
        """Wait until that page is there: by its name, for the load of one before may be told late."""
        self._owner.wait("Page.lifecycleEvent", self._session, name="load", loaderId=loader)

    @contextlib.contextmanager
    def _leading(self):
        """What is done inside leads to another page: wait for it."""
        before = len(self._owner.events)
        yield
        told = self._owner.wait("Page.frameNavigated", self._session, before)
        self._loaded(told["frame"]["loaderId"])

    def run(self, expression):
        """What an expression gives."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def click(self, selector):
        """Click what leads to another page, and wait for it."""
        with self._leading():
            self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def enter(self):
        """Press Enter where the focus is, which leads to another page."""
        # Without the focus the key would go nowhere, and nobody would come.
        self.wait_for_focus()
        with self._leading():
            self.key("Enter", "\r")

    def type(self, text):
        """Type where the focus is."""
        self.wait_for_focus()
        self.call("Input.insertText", text=text)

    def focus(self, selector):
        """Put the focus where a person would tab to."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        self.call(
            "DOM.focus", nodeId=self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        )

    def follow_first(self, selector):
        """Go where a link leads, by keyboard."""
        self.focus(selector)
        self.enter()

    def path(self):
        """Where it is, without the host."""
        history = self.call("Page.getNavigationHistory")
        url = history["entries"][history["currentIndex"]]["url"]
        return "/" + url.split("/", 3)[3]

    def focused(self):
        """The name of what has the focus, as it is read aloud."""
        for one in self.call("Accessibility.getFullAXTree")["nodes"]:
            has = [each["value"]["value"] for each in one.get("properties", ()) if each["name"] == "focused"]
            if has == [True] and one["role"]["value"] != "RootWebArea":
                return one["name"]["value"]
        return None

    def wait_for_focus(self):
        """Wait until something has the focus: a page gives it a moment after it is loaded."""
        until = time.monotonic() + ANSWER_SECONDS_MAX
        while self.focused() is None:
            assert time.monotonic() < until, "nothing has the focus"
            time.sleep(0.05)

    def cookies(self):
        """The names of the cookies that it keeps."""
        return [one["name"] for one in self.call("Network.getCookies")["cookies"]]

    def key(self, name, text=""):
        """Press a key."""
        codes = {"Enter": 13, "Tab": 9, "/": 191}
        for kind in ("keyDown", "keyUp"):
            told = {
                "key": name,
                "text": text if kind == "keyDown" else "",
                "windowsVirtualKeyCode": codes[name],
            }
            self.call("Input.dispatchKeyEvent", type=kind, **told)

    def picture(self, path, *, whole=False):
        """A PNG of what is seen; `whole`: of all of the page."""
        raw = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(raw))

    def complaints(self):
        """What the browser logged as wrong: what its policy refused, scripts that failed."""
        told = self._owner.events
        logged = [one["params"]["entry"] for one in told if one.get("method") == "Log.entryAdded"]
        thrown = [one["params"] for one in told if one.get("method") == "Runtime.exceptionThrown"]
        return [one["text"] for one in logged if one["level"] == "error"] + thrown
