"""What the deployment and the runbook call exists: commands, options, documents, alerts."""

from __future__ import annotations

import re
import shlex

import pytest
import reference
import yaml

DOCS = ("docs/OPERATIONS.md", "docs/DEPLOYMENT.md", "docs/METRICS.md", "infra/helm/runlore/README.md")


def calls(text):
    """Every `runlore ...` in code, in a block or in a line, as words."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    inline = re.findall(r"`(runlore [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    for line in [*inline, *(line for line in lines if line.startswith("runlore "))]:
        yield shlex.split(re.sub(r"\s#.*$", "", line), posix=True)[1:]


def check(words, known):
    """The problem with a call; None where it is one that the command line takes."""
    path = next((tuple(words[:count]) for count in (3, 2, 1) if tuple(words[:count]) in known), None)
    if path is None:
        groups = {one[:count] for one in known for count in range(1, len(one))}
        return None if tuple(words) in groups else f"there is no command {shlex.join(words)}"
    options = {option for one in known[path].params for option in [*one.opts, *one.secondary_opts]}
    wrong = {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} - options - {"--help"}
    return f"{shlex.join(words)}: no option {wrong}" if wrong else None


@pytest.mark.parametrize("name", DOCS)
def test_every_command_in_a_page_exists_with_its_options(name):
    known = reference.commands()
    found = list(calls((reference.ROOT / name).read_text("utf-8")))
    problems = [problem for words in found if (problem := check(words, known))]
    assert not problems, "\n".join(problems)
    assert found or name == "docs/METRICS.md"


def test_every_command_that_a_container_runs_exists_with_its_options():
    known = reference.commands()
    services = yaml.safe_load((reference.ROOT / "infra/compose.yaml").read_text("utf-8"))["services"]
    commands = {name: one["command"] for name, one in services.items() if "RUNLORE_IMAGE" in one["image"]}
    text = (reference.ROOT / "infra/docker/Dockerfile").read_text("utf-8")
    (default,) = re.findall(r"^CMD (\[.*\])$", text, re.M)
    commands["the image"] = yaml.safe_load(default)
    problems = [f"{name}: {problem}" for name, words in commands.items() if (problem := check(words, known))]
    assert not problems, "\n".join(problems)


def test_what_a_page_links_to_is_there():
    for name in DOCS:
        path = reference.ROOT / name
        for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{name}: {target}"
        for target in re.findall(r"\b((?:docs|infra|tests|services)/[\w./-]+\w)", path.read_text("utf-8")):
            assert (reference.ROOT / target).exists(), f"{name}: {target}"
