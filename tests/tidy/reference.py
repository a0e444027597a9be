"""The generated parts of docs/CLI.md, SETTINGS.md and METRICS.md, from the commands, errors, settings and metrics.

And of docs/GUARANTEES.md (guarantees.py), and of the Helm chart's schema, from the settings.

python tests/tidy/reference.py     writes them anew; tests/tidy checks that nobody has to
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import textwrap
from pathlib import Path

import guarantees

import runlore
from runlore import errors, telemetry
from runlore.cli import main
from runlore.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def leaves(command, words=()):
    """Every command with the words that call it, in the order of `runlore --help`."""
    subcommands = getattr(command, "commands", {})
    if words and not subcommands:
        yield words, command
    for name, one in subcommands.items():
        yield from leaves(one, (*words, name))


def commands():
    return dict(leaves(main.command()))


def command_reference():
    out = []
    for words, command in commands().items():
        out += [f"### runlore {' '.join(words)}", ""]
        out += [_prose(command.help), ""]
        out += ["| argument or option | meaning |", "|---|---|"]
        out += [_parameter(one) for one in command.params if one.name != "help"]
        out += [""]
    return "\n".join(out)


def _prose(text):
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    shown = [
        f"Example: `{one.removeprefix('Example: ')}`" if one.startswith("Example: ") else one
        for one in paragraphs
    ]
    return "\n\n".join(
        textwrap.fill(one, 110, break_long_words=False, break_on_hyphens=False) for one in shown
    )


def _parameter(one):
    names = [*one.opts, *one.secondary_opts]
    is_option = names[0].startswith("-")
    shown = ", ".join(f"`{name}`" for name in names) if is_option else f"`{one.metavar or one.name.upper()}`"
    default = one.default
    told = f" (default: {default})" if is_option and type(default) in (int, str) and default != "" else ""
    return f"| {shown} | {one.help}{told} |".replace("|  |", "| |")


def every_error():
    """Every kind of error in the package, by group."""
    for module in pkgutil.walk_packages(runlore.__path__, "runlore."):
        importlib.import_module(module.name)
    found = {}

    def walk(group, one):
        if one.__module__.startswith("runlore."):
            found.setdefault(one.kind, (group, one))
        for child in one.__subclasses__():
            walk(group if group is not errors.RunloreError else child, child)

    walk(errors.RunloreError, errors.RunloreError)
    return found


def error_reference():
    rows = [
        f"| `{kind}` | {one.exit_code} | {group.__name__} | {(one.__doc__ or '').strip().splitlines()[0]} |"
        for kind, (group, one) in sorted(every_error().items())
        # Errors of the simulation never leave it.
        if not one.__module__.startswith("runlore.testing")
    ]
    return "\n".join(["| kind | exit code | group | what it says |", "|---|---|---|---|", *rows])


def setting_reference():
    rows = []
    for name, one in Settings.model_fields.items():
        limits = [str(limit).removeprefix("[").removesuffix("]") for limit in one.metadata]
        kinds = re.sub(r"typing\.|pathlib\.|<class '|'>|\.?_local\.", "", str(one.annotation))
        kind = kinds.replace("Literal[", "one of ").replace("]", "").replace("'", "`")
        bounds = f" ({', '.join(_limit(limit) for limit in limits)})" if limits else ""
        rows.append(f"| `RUNLORE_{name.upper()}` | `{one.default}` | {kind}{bounds} | {one.description} |")
    return "\n".join(["| setting | default | type | meaning |", "|---|---|---|---|", *rows])


def _limit(text):
    words = {"Ge(ge=": "at least ", "Le(le=": "at most ", "Gt(gt=": "above ", "Lt(lt=": "below "}
    for code, word in words.items():
        text = text.replace(code, word)
    return text.removesuffix(")")


def metric_reference():
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in telemetry.METRICS
    ]
    rows = [row.replace("|  |", "| |") for row in rows]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


CHART_SCHEMA = ROOT / "infra/helm/runlore/values.schema.json"
CHART_OWN = {
    *(
        "home",
        "fsync",
        "bus",
        "store",
        "url",
        "key",
        "drain_seconds_max",
        "log_format",
        "health_port",
        "health_address",
    ),
    *("http_host", "http_port", "http_keys", "model_url", "model_key", "models_file"),
    *("s3_bucket", "s3_prefix", "s3_endpoint", "s3_region", "s3_encryption", "s3_kms_key"),
    *("s3_access_key_id", "s3_secret_access_key"),
    *(
        "kafka_servers",
        "kafka_security",
        "kafka_sasl_mechanism",
        "kafka_username",
        "kafka_password",
        "kafka_instance",
    ),
    *("kafka_ca_file", "kafka_cert_file", "kafka_key_file", "kafka_topic_prefix", "kafka_group_prefix"),
}
"""Settings that the chart makes of values of its own, or that mean nothing in a cluster; and secrets."""


def chart_settings():
    """JSON Schema of the chart's `settings`: every setting that it does not make itself, with its limits."""
    found = Settings.model_json_schema()["properties"]
    dropped = ("title", "default")
    properties = {
        name: {key: value for key, value in one.items() if key not in dropped}
        for name, one in found.items()
        if name not in CHART_OWN and not _is_secret(one)
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def chart_secrets():
    """The same of its `secretSettings`: each names a secret that is there, and a key in it."""
    found = Settings.model_json_schema()["properties"]
    named = {"$ref": "#/definitions/fromSecret"}
    properties = {name: named for name, one in found.items() if name not in CHART_OWN and _is_secret(one)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _is_secret(one):
    return one.get("format") == "password"


def chart_schema():
    """The whole schema of the chart's values, with those parts anew."""
    schema = json.loads(CHART_SCHEMA.read_text("utf-8"))
    schema["definitions"] |= {"settings": chart_settings(), "secretSettings": chart_secrets()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


PARTS = {
    ("docs/CLI.md", "commands"): command_reference,
    ("docs/CLI.md", "errors"): error_reference,
    ("docs/SETTINGS.md", "settings"): setting_reference,
    ("docs/METRICS.md", "metrics"): metric_reference,
    **{("docs/GUARANTEES.md", name): make for name, make in guarantees.PARTS.items()},
}


def replaced(text, name, content):
    """`text` with the part `name` replaced."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


if __name__ == "__main__":
    for (file, name), make in PARTS.items():
        path = ROOT / file
        path.write_text(replaced(path.read_text("utf-8"), name, make()), "utf-8")
    CHART_SCHEMA.write_text(chart_schema(), "utf-8")
