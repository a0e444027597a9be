"""What `runlore source check` says, to the letter: it is what somebody who writes a mapping has before him.

RUNLORE_TEST_GOLDEN=1 writes the files of `source_check/` anew; look at the difference before it is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from unittest import mock

import pytest

import foreign
from runlore.cli import main

FOLDER = Path(__file__).with_name("source_check")
DAMAGED = {
    "turns": [
        {"from": "customer", "text": "Where is it?"},
        {"from": "bot", "text": "One moment."},
        {"from": "Night shift", "text": "It is held."},
    ],
    "chat": {"ident": "c-981", "closing": "c-981/3"},
    "outcome": "parked",
    "cost": {"prompt": "many"},
}
CASES = {
    "orders": ("orders.toml", [foreign.order()]),
    "orders-wrong": ("orders.toml", [foreign.order(**DAMAGED)]),
    "orders-other-event": ("orders.toml", [foreign.order(type="chat_opened")]),
    "orders-many": (
        "orders.toml",
        [foreign.order(), foreign.order(chat={"closing": "x"}), foreign.order(turns=[])],
    ),
    "spans": ("spans.toml", [foreign.span()]),
    "spans-failed": (
        "spans.toml",
        [foreign.span(status={"code": "STATUS_CODE_ERROR", "message": "deadline exceeded"})],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_check_says_is_as_it_was(case, tmp_path, monkeypatch):
    mapping, values = CASES[case]
    (tmp_path / "sample.jsonl").write_text("\n".join(json.dumps(one) for one in values), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNLORE_HOME", str(tmp_path / "home"))
    out = io.StringIO()
    words = ["runlore", "source", "check", str(foreign.EXAMPLES / mapping), "sample.jsonl"]
    with (
        mock.patch("sys.argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        main.main()
    said = f"{out.getvalue()}exit {ended.value.code or 0}\n"
    path = FOLDER / f"{case}.txt"
    if os.environ.get("RUNLORE_TEST_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(said, "utf-8")
    assert said == path.read_text("utf-8")
