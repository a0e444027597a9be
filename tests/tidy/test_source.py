"""The source keeps its own rules: who may import whom, who asks the machine for time, how long things get."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runlore import sources

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "services" / "runlore"
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600

FORBIDDEN_CALLS = {
    # what → where alone it may stand
    "time.time": {"clock.py"},
    "time.monotonic": {"clock.py", "bus/sqlite.py"},
    "datetime.now": {"clock.py"},
    "dt.datetime.now": {"clock.py"},
    "datetime.utcnow": set(),
    "date.today": set(),
    "os.urandom": {"clock.py"},
    "os.environ": set(),
    "os.getenv": set(),
}
FORBIDDEN_IMPORTS = {"uuid": set(), "random": {"clock.py"}, "secrets": set()}
SERVER = {
    # what only an extra installs (first `runlore[server]`) → who may import it; nobody imports those at its top
    "aiokafka": ("bus/kafka", "bus/topics", "cli/", "upkeep/"),
    "boto3": ("store/s3", "sources/mapping/objects"),
    "botocore": ("store/s3", "sources/mapping/objects"),
    "jmespath": ("sources/",),
    "prometheus_client": ("telemetry",),
    "opentelemetry": ("telemetry",),
    "fastapi": ("lookup/http/",),
    "starlette": ("lookup/http/",),
    "uvicorn": ("lookup/http/", "cli/serve"),
    "jinja2": ("lookup/http/console/",),
    "markupsafe": ("lookup/http/console/",),  # which Jinja2 brings
    "markdown_it": ("lookup/http/console/",),
    "aiosmtplib": ("upkeep/mail",),
    "h11": ("lookup/http/connections",),  # which uvicorn brings
    "mcp": ("lookup/mcp",),
    "openai": ("models/openai",),
    "kingfisher_sdk": ("memory/detectors",),
    # what only `runlore[agents]` installs
    "agents": ("agents/",),
    "httpx2": ("agents/",),
}
APART = {
    # folder → what it must not import, and why
    "memory/": ("runlore.store", "runlore.bus", "runlore.worker", "runlore.cli", "runlore.commit", "asyncio"),
    "events/": (
        "runlore.store",
        "runlore.bus",
        "runlore.worker",
        "runlore.cli",
        "runlore.consumers",
        "asyncio",
    ),
    "sources/": (
        "runlore.store",
        "runlore.bus",
        "runlore.worker",
        "runlore.cli",
        "runlore.consumers",
        "asyncio",
    ),
    "consumers/": ("asyncio", "threading", "runlore.worker", "runlore.cli", "runlore.wiring"),
    "commit/": (
        "asyncio",
        "runlore.consumers",
        "runlore.lookup",
        "runlore.worker",
        "runlore.cli",
        "runlore.wiring",
    ),
    "lookup/": ("runlore.worker", "runlore.cli", "runlore.wiring"),
    "store/": ("runlore.commit", "runlore.consumers", "runlore.memory", "runlore.events", "runlore.cli"),
    "bus/": ("runlore.commit", "runlore.consumers", "runlore.memory", "runlore.events", "runlore.cli"),
    "worker/": ("runlore.cli", "runlore.wiring"),
    "models/": (
        "runlore.bus",
        "runlore.consumers",
        "runlore.lookup",
        "runlore.memory",
        "runlore.worker",
        "runlore.cli",
        "runlore.wiring",
    ),
    "agents/": ("runlore.cli",),
    "": ("pytest", "hypothesis", *SERVER),
}
MAY_IMPORT_TESTING = ("testing/", "upkeep/verify.py", "upkeep/erasing/proof.py")


@functools.cache
def trees():
    """Every module as it is parsed: by the first test that asks, not by every process that only collects tests."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(tree):
    """Every module that a tree imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node):
    """`a.b.c` of an attribute chain."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_its_role_and_stays_short(name):
    lines = MODULES[name].read_text("utf-8").splitlines()
    assert ast.get_docstring(trees()[name]) or not lines, f"{name} has no docstring"
    assert len(lines) <= MODULE_LINES_MAX, f"{name} has {len(lines)} lines"
    long = {
        one.name: one.end_lineno - one.lineno + 1
        for one in functions(trees()[name])
        if one.end_lineno - one.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert not long, f"{name}: {long}"


@pytest.mark.parametrize("name", MODULES)
def test_only_the_clock_asks_for_time_ids_and_randomness_and_only_settings_read_the_environment(name):
    used = {dotted(node) for node in ast.walk(trees()[name]) if isinstance(node, ast.Attribute)}
    found = [what for what, allowed in FORBIDDEN_CALLS.items() if what in used and name not in allowed]
    roots = {one.split(".")[0] for one in imports(trees()[name])}
    found += [what for what, allowed in FORBIDDEN_IMPORTS.items() if what in roots and name not in allowed]
    assert not found, f"{name} uses {found}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    found = set(imports(trees()[name]))
    for folder, banned in APART.items():
        if name.startswith(folder):
            banned = [ban for ban in banned if not name.startswith(SERVER.get(ban, ("-",)))]
            wrong = [one for one in found for ban in banned if one == ban or one.startswith(f"{ban}.")]
            assert not wrong, f"{name} imports {wrong}"
    if not name.startswith(MAY_IMPORT_TESTING):
        assert not [one for one in found if one.startswith("runlore.testing")], f"{name} imports the fakes"


OWN = [
    *sorted(
        path
        for folder in ("services", "tests", "docs", "examples", "benchmarks", "schemas")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md") and "__pycache__" not in path.parts
    ),
    *sorted(
        path
        for path in (ROOT / "clients").rglob("*")
        if path.suffix in (".ts", ".mjs", ".md") and not {"node_modules", "dist"} & set(path.parts)
    ),
    ROOT / "README.md",
    ROOT / "pyproject.toml",
    ROOT / "Makefile",
]


def test_nothing_is_left_to_be_done_later_and_nobodys_machine_is_named():
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X:")))
    places = re.compile(
        "|".join(("/ho" + "me/[a-z]", "/Us" + "ers/[a-z]", "/ro" + "ot/", r"/wo" + r"rk/", "C:" + r"\\\\Us"))
    )
    found = []
    for path in OWN:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if marks.search(line) or places.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


HEAVY = (
    "pydantic",
    "sqlite_utils",
    "sqlite3",
    "rich.progress",
    "structlog",
    "stamina",
    "mcp",
    "kingfisher_sdk",
    "runlore.memory",
    "runlore.store",
)


def test_the_command_line_loads_nothing_heavy_before_a_command_runs():
    code = "import sys, runlore.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not [name for name in HEAVY if name in loaded]
    own = {name for name in loaded if name.startswith("runlore")}
    assert {name for name in own if not name.startswith("runlore.cli")} == {"runlore"}


def test_the_memory_model_and_the_contract_load_no_store_bus_or_command_line():
    code = "import sys, runlore.memory.rules, runlore.memory.render, runlore.events.envelope; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = (
        "sqlite3",
        "typer",
        "runlore.store",
        "runlore.bus",
        "runlore.cli",
        "runlore.consumers",
    )
    assert not [name for name in heavy if name in done.stdout.split()]


def test_the_install_is_light_and_every_dependency_is_used():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[A-Za-z0-9._-]+", one).group().lower().replace("-", "_") for one in listed}
    codec = {"blake3", "zstandard", "pyfastcdc", "pathspec"}
    assert names <= {"pydantic", "pydantic_settings", "sqlite_utils", "typer", "rich", "structlog"} | codec
    roots = {one.split(".")[0] for tree in trees().values() for one in imports(tree)}
    assert {root for root in roots if root not in sys.stdlib_module_names} - {"runlore", *SERVER} == names


def test_no_module_is_dead():
    """Every module is imported by another, or is run by name."""
    used = {one for tree in trees().values() for one in imports(tree)}
    for path in OWN:
        if path.suffix == ".py" and PACKAGE not in path.parents:
            used |= set(imports(ast.parse(path.read_text("utf-8"))))
    entry = {"runlore.cli.main", "runlore.events.schemas", *(one.module for one in sources.FORMATS.values())}
    for name in MODULES:
        module = "runlore." + name.removesuffix(".py").replace("/", ".")
        if name.endswith("__init__.py") or module in entry:
            continue
        assert any(one == module or one.startswith(f"{module}.") for one in used), f"nobody imports {module}"


def test_paths_in_this_test_are_there():
    for folder in APART:
        assert not folder or (PACKAGE / folder).is_dir(), folder
    assert Path(PACKAGE / "clock.py").exists() and len(MODULES) > 40
