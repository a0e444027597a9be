"""What holds for every test: no network but loopback, no settings from outside, async tests run.

Hypothesis profiles: `default`, and `ci` (HYPOTHESIS_PROFILE=ci), which looks further.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import socket
import sys

import hypothesis
import pytest
import structlog

from runlore.memory import detectors
from servers import moto, seaweedfs, seaweedfs_server  # noqa: F401  (fixtures of every folder)

hypothesis.settings.register_profile("default", max_examples=50, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_LOOPBACK = ("127.", "::1", "localhost")
_connect = socket.socket.connect


def _connect_on_this_machine_only(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(_LOOPBACK):
        raise PermissionError(f"a test tried to reach {address[0]}; tests work without a network")
    return _connect(self, address)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is loaded until all tests are there stays: garbage is not looked for meanwhile, nor in it later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        if session := sys.modules.get("botocore.session"):
            # Each client reads what AWS's services are like, 60 ms of processor: hundreds of times the same files.
            session.create_loader = functools.cache(session.create_loader)


@pytest.fixture(autouse=True)
def _sealed(monkeypatch):
    """No test reaches the network, a model, or the settings of whoever runs it."""
    monkeypatch.setattr(socket.socket, "connect", _connect_on_this_machine_only)
    for name in list(os.environ):
        if name.startswith(("RUNLORE_", "OPENAI_")) and not name.startswith("RUNLORE_TEST_"):
            monkeypatch.delenv(name)
    # A client that forgets its fake meets a closed port, also in a subprocess that no patch reaches.
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/tests-call-no-model")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    # The detector library is for the tests that ask for it: what one loads, the next one's records must not show.
    monkeypatch.setenv("RUNLORE_REDACT_LIBRARY", "0")
    detectors.use(None)


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    """A command, or an agent's own process, sets up the logs: not those of the tests after it."""
    was, config = structlog.is_configured(), structlog.get_config()
    yield
    if was:
        structlog.configure(**config)
    else:
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory):
    """A real broker, one for all tests of this process. Skips where it can not start (tests/brokers.py)."""
    import brokers

    with brokers.broker(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run `async def` tests on a loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True
