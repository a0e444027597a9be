"""Make the sample runs: the real Agents SDK, a scripted model, real commands in a real sandbox. No key.

    python examples/make_samples.py            # writes examples/runs and examples/sessions

What the *model* says is written below; what the *tools* answer is not: every command runs in the sandbox's
workspace, and every line is the SDK's own rollout line, as its memory capability wrote it to `sessions/`.

- `sessions/<rollout>.jsonl`: the SDK's session files, for `runlore import agents-sdk`.
- `runs/<rollout>.jsonl`: the same runs as `run.completed` data (whom they were for, which agents), for
  `runlore emit`.

Only what no two runs have in common is replaced, so that the script gives the same bytes each time: the
workspace's folder becomes `/workspace`, and times, durations and random ids become fixed ones. The project's
code is written so that its tracebacks read the same under every Python from 3.11 on.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = "demo"
MEMORY = "support"
START = dt.datetime(2026, 9, 1, 9, 0, 0, 120000, tzinfo=dt.UTC)
TURNS_MAX = 12

# --- the project that the agents work on ----------------------------------------------------------------

BILLING = {
    "README.md": "# billing\n\nInvoices and exports. Tests: `python3 -m unittest discover -s tests`.\n",
    "billing/__init__.py": "",
    "billing/config.py": (
        "import os\n\n\n"
        "class ConfigError(Exception):\n    pass\n\n\n"
        "def region():\n"
        '    """The tax region. There is no default: a wrong one charges the wrong tax."""\n'
        '    name = os.environ.get("BILLING_REGION", "")\n'
        '    if name not in ("eu", "us"):\n'
        "        raise ConfigError(\"BILLING_REGION is not set; use 'eu' or 'us'\")\n"
        "    return name\n"
    ),
    "billing/totals.py": (
        "from billing import config\n\n"
        "RATES = {'eu': 20, 'us': 0}\n\n\n"
        "def gross(net_cents):\n"
        "    rate = RATES[config.region()]\n"
        "    return round(net_cents * (100 + rate) / 100, -2)\n"
    ),
    "tests/__init__.py": "",
    "tests/test_totals.py": (
        "import unittest\n\n"
        "from billing import config, totals\n\n\n"
        "class TotalsTest(unittest.TestCase):\n"
        "    def setUp(self):\n"
        "        config.region()\n\n"
        "    def test_gross_adds_tax(self):\n"
        "        self.assertEqual(totals.gross(1000), 1200)\n\n"
        "    def test_gross_keeps_cents(self):\n"
        "        self.assertEqual(totals.gross(1010), 1212)\n\n\n"
        "if __name__ == '__main__':\n"
        "    unittest.main()\n"
    ),
    "tools/export.py": (
        '"""Write an order file as JSON."""\n'
        "import argparse, csv, json, sys\n\n"
        "parser = argparse.ArgumentParser(prog='export.py')\n"
        "parser.add_argument('source')\n"
        "parser.add_argument('--delimiter', default=',')\n"
        "args = parser.parse_args()\n"
        "with open(args.source, encoding='utf-8') as stream:\n"
        "    rows = list(csv.DictReader(stream, delimiter=args.delimiter))\n"
        "if not rows or len(rows[0]) < 2:\n"
        "    sys.exit(f'export.py: error: {args.source} has one column only; is {args.delimiter!r} its delimiter?')\n"
        "json.dump(rows, sys.stdout, indent=1)\n"
        "print()\n"
    ),
    "data/orders.csv": "order;customer;net_cents\n1001;Ines;1000\n1002;Tom;2550\n",
    "data/refunds.csv": "order;reason;net_cents\n1002;damaged;2550\n",
}
KUNDEN = {
    "LIESMICH.md": "# Kundenimport\n\nAufruf: `python3 import_kunden.py DATEI`.\n",
    "import_kunden.py": (
        "import argparse, sys\n\n"
        "parser = argparse.ArgumentParser(prog='import_kunden.py')\n"
        "parser.add_argument('datei')\n"
        "parser.add_argument('--kodierung', default='utf-8')\n"
        "args = parser.parse_args()\n"
        "sys.stdout.reconfigure(encoding='utf-8')\n"
        "sys.stderr.reconfigure(encoding='utf-8')\n"
        "roh = open(args.datei, 'rb').read()\n"
        "try:\n"
        "    zeilen = roh.decode(args.kodierung).splitlines()\n"
        "except UnicodeDecodeError as fehler:\n"
        "    sys.exit(f'import_kunden.py: Fehler: Byte {fehler.start} ist kein gültiges {args.kodierung}')\n"
        "for zeile in zeilen[1:]:\n"
        "    print('übernommen:', zeile.replace(';', ', '))\n"
        "print(len(zeilen) - 1, 'Kunden importiert')\n"
    ),
    "kunden.csv": "name;ort\nJörg Müller;Köln\nAnaïs Weiß;Zürich\n".encode("latin-1"),
}
TEST = "python3 -m unittest discover -s tests"

# --- the model's lines ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """The model says this."""

    text: str


@dataclass(frozen=True)
class Call:
    """The model calls this tool."""

    tool: str
    arguments: dict[str, Any]


def sh(command: str) -> Call:
    return Call("exec_command", {"cmd": command, "login": False})


@dataclass(frozen=True)
class Turn:
    """One run: what the user asks, and the model's steps. Several items in one step are one model reply."""

    user: str
    steps: tuple[Say | Call | tuple[Say | Call, ...], ...]
    turns_max: int = TURNS_MAX
    approve: bool = False
    """Resume the interrupted run before, with its calls approved; `user` is not asked."""


@dataclass(frozen=True)
class Scenario:
    """One rollout: a conversation of runs in one workspace."""

    rollout: str
    subject: str | None
    files: dict[str, str | bytes]
    turns: tuple[Turn, ...]
    cast: Callable[[Any], list[Any]] = field(default=lambda model: solo(model, "Fixer"))


def solo(model: Any, name: str) -> list[Any]:
    """One sandbox agent."""
    return [sandbox_agent(model, name)]


def desk(model: Any) -> list[Any]:
    """A front desk that hands over to billing, which has tools of its own."""
    from agents import function_tool

    def explain(_context: Any, error: Exception) -> str:
        return f"error: {error}"

    @function_tool(failure_error_function=explain)
    def find_invoice(number: str) -> str:
        """Look an invoice up."""
        if re.fullmatch(r"INV-\d{4}", number) is None:
            raise ValueError(f"{number!r} is not an invoice number; they have the form INV-0000")
        return json.dumps({"number": number, "net_cents": 2550, "tax_cents": 510, "paid": True})

    @function_tool(needs_approval=True)
    def refund(number: str, cents: int) -> str:
        """Refund an invoice, in part or whole."""
        return json.dumps({"number": number, "refunded_cents": cents})

    billing = sandbox_agent(model, "Billing", tools=[find_invoice, refund])
    return [sandbox_agent(model, "Front desk", handoffs=[billing]), billing]


SCENARIOS = (
    Scenario(
        "inv-204",
        "ana",
        BILLING,
        (
            Turn(
                "The totals on our invoices are off by some cents. Find out why and fix it. Please always show me "
                "amounts with tax included.",
                (
                    (Say("I will run the tests first."), sh(TEST)),
                    sh("cat billing/config.py"),
                    sh(f"BILLING_REGION=eu {TEST}"),
                    sh("cat billing/totals.py"),
                    (
                        Say("`round(..., -2)` drops the cents."),
                        sh(
                            "sed 's|round(net_cents \\* (100 + rate) / 100, -2)|net_cents * (100 + rate) / 100|' "
                            "billing/totals.py > totals.new && mv totals.new billing/totals.py"
                        ),
                    ),
                    sh(f"BILLING_REGION=eu {TEST}"),
                    Say(
                        "Fixed: gross() rounded to whole units. An invoice of 10.10 net is now 12.12 with tax. Both "
                        "tests pass. They need BILLING_REGION to be set, for example to eu."
                    ),
                ),
            ),
            Turn(
                "No, not like that: gross() now returns a float. Amounts are whole cents everywhere, keep it an "
                "integer.",
                (
                    sh(
                        "sed 's|net_cents \\* (100 + rate) / 100|(net_cents * (100 + rate) + 50) // 100|' "
                        "billing/totals.py > totals.new && mv totals.new billing/totals.py && cat billing/totals.py"
                    ),
                    sh(f"BILLING_REGION=eu {TEST}"),
                    sh(
                        "BILLING_REGION=eu python3 -c 'from billing import totals; print(repr(totals.gross(1010)))'"
                    ),
                    Say(
                        "gross() works in whole cents now: gross(1010) is 1212, an integer. Both tests pass."
                    ),
                ),
            ),
        ),
    ),
    Scenario(
        "inv-219",
        "ben",
        {
            **BILLING,
            "billing/totals.py": BILLING["billing/totals.py"].replace(
                "round(net_cents * (100 + rate) / 100, -2)", "(net_cents * (100 + rate) + 50) // 100"
            ),
        },
        (
            Turn(
                "Add a function net(gross_cents) beside gross(), with a test. Keep your answer to one sentence.",
                (
                    sh(TEST),
                    sh("grep -rn BILLING_REGION billing"),
                    sh(f"BILLING_REGION=us {TEST}"),
                    sh(f"BILLING_REGION=eu {TEST}"),
                    sh(
                        "cat >> billing/totals.py <<'EOF'\n\n\ndef net(gross_cents):\n"
                        "    rate = RATES[config.region()]\n"
                        "    return (gross_cents * 100 + (100 + rate) // 2) // (100 + rate)\nEOF\n"
                        "cat > tests/test_net.py <<'EOF'\nimport unittest\n\nfrom billing import totals\n\n\n"
                        "class NetTest(unittest.TestCase):\n    def test_net_undoes_gross(self):\n"
                        "        for cents in (1, 999, 1010):\n"
                        "            self.assertEqual(totals.net(totals.gross(cents)), cents)\nEOF"
                    ),
                    sh(f"BILLING_REGION=eu {TEST}"),
                    Say(
                        "net() is in billing/totals.py with a test, and all three tests pass with BILLING_REGION=eu."
                    ),
                ),
            ),
        ),
    ),
    Scenario(
        "report-7",
        "ana",
        BILLING,
        (
            Turn(
                "Make out/orders.json from data/orders.csv with tools/export.py, and a file out/total.txt with the "
                "sum of all orders.",
                (
                    sh("ls -1 data tools"),
                    sh("mkdir -p out && python3 tools/export.py data/orders.csv > out/orders.json"),
                    sh("head -2 data/orders.csv"),
                    sh(
                        "python3 tools/export.py data/orders.csv --delimiter ';' > out/orders.json && "
                        "cat out/orders.json"
                    ),
                ),
                turns_max=4,
            ),
            Turn(
                "Please finish it: out/total.txt is missing.",
                (
                    sh(
                        "python3 -c \"import json; print(sum(int(o['net_cents']) for o in "
                        "json.load(open('out/orders.json'))))\" > out/total.txt; cat out/total.txt"
                    ),
                    Say(
                        "out/orders.json and out/total.txt are there. The sum is 3550 cents net: 42.60 with tax."
                    ),
                ),
            ),
        ),
    ),
    Scenario(
        "refunds-12",
        "ben",
        BILLING,
        (
            Turn(
                "Export data/refunds.csv as JSON to out/refunds.json. Short answer, no tables.",
                (
                    sh("mkdir -p out && python3 tools/export.py data/refunds.csv > out/refunds.json"),
                    sh(
                        "mkdir -p out && python3 tools/export.py data/refunds.csv --delimiter ';' > out/refunds.json"
                    ),
                    sh("python3 -m json.tool out/refunds.json"),
                    Say("Done: out/refunds.json holds one refund. The file is separated by semicolons."),
                ),
            ),
        ),
    ),
    Scenario(
        "desk-31",
        "ana",
        {},
        (
            Turn(
                "I was charged for order 1002 twice. It was invoice 42. Please refund one.",
                (
                    Call("transfer_to_billing", {}),
                    Call("find_invoice", {"number": "42"}),
                    Call("find_invoice", {"number": "INV-0042"}),
                    (
                        Say("I found it. I will ask for the refund to be approved."),
                        Call("refund", {"number": "INV-0042", "cents": 3060}),
                    ),
                ),
            ),
            Turn(
                "",
                (Say("I refunded 30.60 with tax for INV-0042."),),
                approve=True,
            ),
        ),
        desk,
    ),
    Scenario(
        "kunden-5",
        "jörg",
        KUNDEN,
        (
            Turn(
                "Bitte importiere kunden.csv. Der Import bricht bei mir ab. Antworte mir immer auf Deutsch.",
                (
                    (
                        Say("Ich führe den Import zuerst unverändert aus."),
                        sh("python3 import_kunden.py kunden.csv"),
                    ),
                    sh("python3 import_kunden.py --help"),
                    sh("python3 import_kunden.py kunden.csv --kodierung latin-1"),
                    Say(
                        "Beide Kunden sind importiert. Die Datei ist latin-1, darum brauchte der Aufruf "
                        "`--kodierung latin-1` – sonst hält er beim ersten Umlaut an."
                    ),
                ),
            ),
        ),
        lambda model: solo(model, "Helferin"),
    ),
    # A scheduled run, for nobody in particular; it meets what inv-204 and inv-219 met.
    Scenario(
        "nightly-3",
        None,
        {
            **BILLING,
            "billing/totals.py": BILLING["billing/totals.py"].replace(
                "round(net_cents * (100 + rate) / 100, -2)", "(net_cents * (100 + rate) + 50) // 100"
            ),
        },
        (
            Turn(
                "Run the tests, then export data/orders.csv to out/orders.json.",
                (
                    sh(TEST),
                    sh(f"BILLING_REGION=eu {TEST}"),
                    sh("mkdir -p out && python3 tools/export.py data/orders.csv > out/orders.json"),
                    sh(
                        "mkdir -p out && python3 tools/export.py data/orders.csv --delimiter ';' > out/orders.json"
                    ),
                    sh("python3 -m json.tool out/orders.json > out/check.txt && echo valid"),
                    Say("The tests pass with BILLING_REGION=eu, and out/orders.json holds both orders."),
                ),
            ),
        ),
    ),
)

# --- running them -----------------------------------------------------------------------------------------


def sandbox_agent(model: Any, name: str, **more: Any) -> Any:
    """A sandbox agent with a shell, whose runs the SDK's memory capability writes to `sessions/`."""
    from agents.sandbox import MemoryGenerateConfig, SandboxAgent
    from agents.sandbox.capabilities import Memory, Shell

    # Generation is on because it writes the session files; the session is never closed in the way that
    # starts its two model phases, so no model is asked.
    memory = Memory(read=None, generate=MemoryGenerateConfig())
    return SandboxAgent(
        name=name,
        model=model,
        instructions="You work on the project in the workspace.",
        capabilities=[Shell(), memory],
        **more,
    )


def model_items(step: Any, rollout: str, counter: list[int]) -> list[Any]:
    """One reply of the model, with ids that are the same each time."""
    from agents.testing import assistant_message, function_call

    out = []
    for part in step if isinstance(step, tuple) else (step,):
        counter[0] += 1
        name = hashlib.sha256(f"{rollout}/{counter[0]}".encode()).hexdigest()[:16]
        if isinstance(part, Say):
            out.append(assistant_message(part.text, item_id=f"msg_{name}"))
        else:
            out.append(function_call(part.tool, part.arguments, call_id=f"call_{name}", item_id=f"fc_{name}"))
    return out


async def run_scenario(scenario: Scenario) -> list[tuple[str, list[str]]]:
    """The SDK's lines for one rollout, scrubbed, each with the chain of agents that worked."""
    from agents import RunConfig, SQLiteSession
    from agents.sandbox import Manifest, SandboxRunConfig
    from agents.sandbox.entries import File
    from agents.sandbox.sandboxes import UnixLocalSandboxClient
    from agents.testing import ScriptedModel

    model = ScriptedModel([])
    cast = scenario.cast(model)
    environment = {"LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", "NO_COLOR": "1"}
    manifest = Manifest(
        entries={
            path: File(content=content.encode() if isinstance(content, str) else content)
            for path, content in scenario.files.items()
        },
        environment={"value": environment},
    )
    client = UnixLocalSandboxClient()
    sandbox = await client.create(manifest=manifest)
    await sandbox.start()
    root = Path(sandbox.normalize_path("."))
    memory = SQLiteSession(scenario.rollout)
    config = RunConfig(sandbox=SandboxRunConfig(session=sandbox), tracing_disabled=True)
    counter = [0]
    chains: list[list[str]] = []
    try:
        state = None
        for turn in scenario.turns:
            model.extend([model_items(step, scenario.rollout, counter) for step in turn.steps])
            chain, state = await run_turn(turn, cast, state, memory, config)
            chains.append(chain)
        lines = (root / "sessions" / f"{scenario.rollout}.jsonl").read_text("ascii").splitlines()
        model.assert_complete()
    finally:
        memory.close()
        await sandbox.stop()
        await client.delete(sandbox)
    assert len(lines) == len(chains), (scenario.rollout, len(lines), len(chains))
    return list(zip([scrub(line, root) for line in lines], chains, strict=True))


async def run_turn(
    turn: Turn, cast: list[Any], state: Any, memory: Any, config: Any
) -> tuple[list[str], Any]:
    """Run one turn; the agents that worked, and the state to resume if it was interrupted."""
    from agents import MaxTurnsExceeded, Runner

    start: Any = turn.user
    if turn.approve:
        for item in state.get_interruptions():
            state.approve(item)
        start = state
    try:
        result = await Runner.run(cast[0], start, session=memory, run_config=config, max_turns=turn.turns_max)
    except MaxTurnsExceeded:
        return [cast[0].name], None
    names = [cast[0].name, *(item.agent.name for item in result.new_items)]
    return list(dict.fromkeys(names)), result.to_state() if result.interruptions else None


# --- the same bytes each time -------------------------------------------------------------------------------

_CHUNK = re.compile(r"Chunk ID: [0-9a-f]{6}\nWall time: [0-9.]+ seconds")
_RAN = re.compile(r"(Ran \d+ tests?) in [0-9.]+s")


def scrub(line: str, root: Path) -> str:
    """`line` without what differs from run to run: the workspace's folder, durations, random ids."""
    roots = sorted({str(root), os.path.realpath(root)}, key=len, reverse=True)

    def text(value: str) -> str:
        for name in roots:
            value = value.replace(name, "/workspace")
        value = _CHUNK.sub("Chunk ID: 000000\nWall time: 0.0500 seconds", value)
        return _RAN.sub(r"\1 in 0.001s", value)

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return value

    return json.dumps(walk(json.loads(line)), separators=(",", ":"))


def at(line: str, when: dt.datetime) -> str:
    """`line` with the time it was written replaced by `when`."""
    return json.dumps({**json.loads(line), "updated_at": when.isoformat()}, separators=(",", ":"))


def event_data(scenario: Scenario, number: int, line: str, chain: list[str]) -> dict[str, Any]:
    """The data of the run's `run.completed` event; the record as an object, for people to read."""
    return {
        "project": PROJECT,
        "memory": MEMORY,
        "session_id": scenario.rollout,
        "run_id": f"{scenario.rollout}-{number}",
        **({"subject": scenario.subject} if scenario.subject else {}),
        "agents": chain,
        "record": json.loads(line),
    }


async def make(into: Path, wanted: set[str] | None = None) -> None:
    """Write the samples of `wanted` rollouts (default: all) below `into`."""
    from agents import set_tracing_disabled

    set_tracing_disabled(True)
    for name in ("sessions", "runs"):
        (into / name).mkdir(parents=True, exist_ok=True)
    for day, scenario in enumerate(SCENARIOS):
        if wanted is not None and scenario.rollout not in wanted:
            continue
        found = await run_scenario(scenario)
        lines = [
            at(line, START + dt.timedelta(days=day, minutes=7 * n)) for n, (line, _chain) in enumerate(found)
        ]
        events = [
            json.dumps(event_data(scenario, n, line, chain), separators=(",", ":"))
            for n, (line, (_raw, chain)) in enumerate(zip(lines, found, strict=True), start=1)
        ]
        for name, rows in (("sessions", lines), ("runs", events)):
            text = "".join(f"{row}\n" for row in rows)
            (into / name / f"{scenario.rollout}.jsonl").write_text(text, "ascii")
        print(f"{scenario.rollout}: {len(lines)} run{'s' if len(lines) > 1 else ''}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample runs with the real Agents SDK, offline.")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent, help="default: this folder")
    args = parser.parse_args()
    if shutil.which("python3") is None:
        sys.exit("the samples run python3 in the sandbox, and there is none on the PATH")
    asyncio.run(make(args.into))


if __name__ == "__main__":
    main()
