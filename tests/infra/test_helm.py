"""The Helm chart: what it makes is what Kubernetes takes, what the program is, and no more than each role needs.

Most of this looks at what the chart made of each file in its ci/, as it is kept in tests/infra/rendered: that needs no
Helm, and a test says when it is of another chart. No cluster runs here (docs/DEPLOYMENT.md, "What was run").
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml
from infra.dev import helm

import runlore
from runlore import pipeline
from runlore.cli import main
from runlore.settings import Settings
from runlore.worker import loop
from servers import need

CASES = [path.name for path in helm.cases()]
CUSTOM = {"PodMonitor", "ScaledObject", "TriggerAuthentication"}
"""Kinds of operators: Kubernetes' own schemas know nothing of them."""
VERSIONS = ("1.27", "1.37")
"""The oldest that the chart takes, and the newest that there is a schema of."""
SETTINGS = {f"RUNLORE_{name.upper()}": one for name, one in Settings.model_fields.items()}
SECRETS = {name for name, one in SETTINGS.items() if "SecretStr" in str(one.annotation)} | {
    "RUNLORE_KAFKA_USERNAME"
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.removesuffix(".yaml"))
def made(request):
    """Every object that the chart made of one file of values."""
    return read(request.param)


@pytest.fixture(scope="module")
def full():
    return read("full.yaml")


def read(name):
    text = (helm.RENDERED / name).read_text("utf-8")
    return [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]


def pods(objects):
    """(kind and name of what makes it, the pod's labels, its specification)."""
    for one in objects:
        kind, where = one["kind"], one
        if kind == "CronJob":
            where = one["spec"]["jobTemplate"]["spec"]["template"]
        elif kind in ("Deployment", "StatefulSet", "Job"):
            where = one["spec"]["template"]
        elif kind != "Pod":
            continue
        yield f"{kind}/{one['metadata']['name']}", where["metadata"]["labels"], where["spec"]


def component(labels):
    return labels["app.kubernetes.io/component"]


def of_kind(objects, *kinds):
    return {one["metadata"]["name"]: one for one in objects if one["kind"] in kinds}


def environment(spec):
    (container,) = spec["containers"]
    return {one["name"]: one for one in container["env"]}


def selects(selector, labels):
    return selector["matchLabels"].items() <= labels.items()


# --- what is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_is_of_this_chart(name):
    assert {path.name for path in helm.RENDERED.iterdir()} == set(CASES)
    told = (helm.RENDERED / name).read_text("utf-8").splitlines()[1]
    values = helm.CHART / "ci" / name
    assert told == f"# {helm.digest(values)}", "run: python infra/dev/helm.py render"


def test_the_chart_goes_with_the_program_of_its_version():
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["version"] == chart["appVersion"] == runlore.__version__
    assert yaml.safe_load((helm.CHART / "values.yaml").read_text("utf-8"))["image"]["tag"] == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(made, version):
    for one in made:
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(copy.deepcopy(one), version, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in made]
    assert len(names) == len(set(names)) and all(len(name) <= 63 for _, name in names)


# --- what it runs -----------------------------------------------------------------------------------------------


def test_every_setting_exists_and_those_of_a_process_are_valid_together(made, monkeypatch):
    for where, labels, spec in pods(made):
        given = {name: one for name, one in environment(spec).items() if name.startswith("RUNLORE_")}
        assert given.keys() <= SETTINGS.keys(), where
        with monkeypatch.context() as patch:
            for name, one in given.items():
                # A secret's own value is not known here; a pod's name is one.
                patch.setenv(name, one.get("value", "given-0"))
            found = Settings()
        on_kafka = labels.get("runlore.io/bus") == "true"
        # With the embedded bus a job would look for its log in a home that is empty, and refuse.
        assert (found.store, found.bus) == ("s3", "kafka"), where
        login = {name for name in given if "KAFKA" in name} - {"RUNLORE_KAFKA_SERVERS"}
        assert bool(login) == on_kafka, where
        assert found.has_model <= (labels.get("runlore.io/model") == "true"), where
        if component(labels) in ("lookup", "admin"):
            assert found.http_keys and found.http_host == "0.0.0.0", where


def test_a_large_number_reaches_the_program_as_it_was_written(full):
    (_, _, spec) = next(one for one in pods(full) if component(one[1]) == "worker-record")
    given = environment(spec)
    assert given["RUNLORE_QUEUE_BYTES_MAX"]["value"] == "134217728"
    assert given["RUNLORE_LANES"]["value"] == "16" and given["RUNLORE_LOG_LEVEL"]["value"] == "warning"


def test_every_command_exists_with_its_options_and_every_stage_is_one(made):
    for where, _, spec in pods(made):
        (container,) = spec["containers"]
        if "command" in container:
            assert container["command"] == ["sleep", "infinity"], where
            continue
        words, command = list(container["args"]), main.command()
        while hasattr(command, "commands"):
            name = words.pop(0)
            command = command.commands[name]
        parsed = command.make_context(name, words).params  # Raises where an option or its value is none.
        if name == "worker":
            assert set(parsed["stages"].split(",")) <= set(loop.STAGES), where


def test_every_stage_is_run_by_some_worker(made):
    found = {
        stage
        for _, labels, spec in pods(made)
        if component(labels).startswith("worker-")
        for stage in spec["containers"][0]["args"][2].split(",")
    }
    assert found >= {"record", "snapshot", "consolidate"}


def test_secrets_are_named_never_written(made):
    assert not of_kind(made, "Secret")
    for where, _, spec in pods(made):
        for name, one in environment(spec).items():
            if name in SECRETS:
                assert one["valueFrom"]["secretKeyRef"].keys() == {"name", "key"}, (where, name)


def test_each_role_may_log_in_as_itself(full):
    secrets = {
        component(labels): environment(spec)[name]["valueFrom"]["secretKeyRef"]["name"]
        for _, labels, spec in pods(full)
        for name in ("RUNLORE_S3_ACCESS_KEY_ID",)
    }
    assert secrets["job-sweep"] == "s3-runlore-sweeper" and secrets["worker-record"] == "s3-runlore"
    assert secrets["toolbox"] == secrets["topics"] == "s3-runlore-operator"


# --- how it runs ------------------------------------------------------------------------------------------------


def test_no_pod_may_more_than_it_needs(made):
    for where, _, spec in pods(made):
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001  # That of the image.
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")}
        assert writable == {"/var/lib/runlore", "/tmp"}, where
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"], where
        for volume in spec["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], where


def test_the_image_writes_where_the_pod_has_a_volume(infra):
    text = (infra / "docker/Dockerfile").read_text("utf-8")
    assert "RUNLORE_HOME=/var/lib/runlore" in text and re.search(r"^USER 10001:10001$", text, re.M)


def test_whoever_stays_is_probed_and_may_drain(made):
    for where, labels, spec in pods(made):
        (container,) = spec["containers"]
        name = component(labels)
        if not name.startswith("worker-") and name not in ("lookup", "admin"):
            assert "livenessProbe" not in container, where
            continue
        given = environment(spec)
        ports = {one["name"]: str(one["containerPort"]) for one in container["ports"]}
        assert ports["metrics"] == given["RUNLORE_HEALTH_PORT"]["value"]
        assert given["RUNLORE_HEALTH_ADDRESS"]["value"] == "0.0.0.0"
        if "http" in ports:
            assert ports["http"] == given["RUNLORE_HTTP_PORT"]["value"]
        wanted = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
        for probe, path in wanted.items():
            asked = container[probe]["httpGet"]
            assert asked == {"path": path, "port": "http" if "http" in ports else "metrics"}, where
        # Its own patience counts from before preStop.
        first = (
            container["lifecycle"]["preStop"]["exec"]["command"]
            if "lifecycle" in container
            else ["sleep", "0"]
        )
        drain = float(given["RUNLORE_DRAIN_SECONDS_MAX"]["value"])
        assert spec["terminationGracePeriodSeconds"] >= drain + float(first[1]) + 10, where
        assert ("http" in ports) == (float(first[1]) > 0), "who balances load hears of it first"


def test_a_selector_finds_its_own_pods_and_holds_nothing_that_an_upgrade_changes(made):
    labels_of = {where: labels for where, labels, _ in pods(made)}
    for one in made:
        if one["kind"] in ("Deployment", "StatefulSet"):
            selector = one["spec"]["selector"]
            found = [where for where, labels in labels_of.items() if selects(selector, labels)]
            assert found == [f"{one['kind']}/{one['metadata']['name']}"]
            assert not any("version" in name or "chart" in name for name in selector["matchLabels"])
        if one["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
            selector = one["spec"].get("selector") or one["spec"]["podSelector"]
            assert [where for where, labels in labels_of.items() if selects(selector, labels)], one
        if one["kind"] == "Service":
            selector = {"matchLabels": one["spec"]["selector"]}
            assert len([where for where, labels in labels_of.items() if selects(selector, labels)]) == 1


def test_what_is_scaled_is_there_and_says_no_number_itself(made):
    targets = of_kind(made, "Deployment", "StatefulSet")
    scaled = set()
    for one in of_kind(made, "HorizontalPodAutoscaler", "ScaledObject").values():
        target = targets[one["spec"]["scaleTargetRef"]["name"]]
        assert one["spec"]["scaleTargetRef"].get("kind", "Deployment") == target["kind"]
        scaled.add(target["metadata"]["name"])
    for name, one in targets.items():
        # A number there would be put back at each upgrade.
        assert ("replicas" in one["spec"]) == (name not in scaled), name


def test_keda_looks_at_the_groups_and_topics_that_the_stages_have(full):
    found = {}
    for one in of_kind(full, "ScaledObject").values():
        for trigger in one["spec"]["triggers"]:
            found[one["spec"]["scaleTargetRef"]["name"]] = trigger
            if trigger["type"] == "kafka":
                # KEDA takes text alone.
                assert all(isinstance(value, str) for value in trigger["metadata"].values())
                assert trigger["authenticationRef"]["name"] in of_kind(full, "TriggerAuthentication")
    stage = pipeline.RECORD
    kafka = found["lore-worker-record"]["metadata"]
    assert (kafka["consumerGroup"], kafka["topic"]) == (f"acme.{stage.group}", f"acme.{stage.reads}")
    assert kafka["sasl"] == "scram_sha512" and kafka["tls"] == "enable"
    query = found["lore-worker-consolidate"]["metadata"]["query"]
    assert "runlore_marks_waiting" in query and pipeline.CONSOLIDATE.reads == "marks"


def test_metrics_are_scraped_under_the_names_that_the_alerts_know(full, infra):
    known = set(re.findall(r"job_name: (\S+)", (infra / "prometheus/prometheus.yml").read_text("utf-8")))
    seen = {}
    for one in of_kind(full, "PodMonitor").values():
        (end,) = one["spec"]["podMetricsEndpoints"]
        keep, job = end["relabelings"]
        seen[job["replacement"]] = {
            component(labels) for _, labels, _ in pods(full) if re.fullmatch(keep["regex"], component(labels))
        }
    assert seen.keys() <= known and seen["runlore-lookup"] == {"lookup", "admin"}
    assert seen["runlore"] == {"worker-record", "worker-snapshot", "worker-consolidate", "worker-summarize"}


# --- who may what -----------------------------------------------------------------------------------------------

ROLES = {
    "worker-record": "worker",
    "worker-snapshot": "worker",
    "worker-consolidate": "worker",
    "worker-summarize": "worker",
    "lookup": "serve",
    "admin": "serve-admin",
    "job-sweep": "sweeper",
    "job-upkeep": "eraser",
    "job-verify": "operator",
    "doctor": "operator",
    "toolbox": "operator",
    "topics": "topics",  # The operator's, before that one is there.
}


def test_each_process_has_the_service_account_of_its_role(made, infra):
    text = (infra / "terraform/roles.tf").read_text("utf-8")
    granted = set(re.findall(r"^    (\w+) = \{$", text, re.M))
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text("utf-8"))
    assert values["serviceAccounts"].keys() <= granted
    there = of_kind(made, "ServiceAccount").keys() | {"runlore-lookup"}
    for where, labels, spec in pods(made):
        account = spec["serviceAccountName"]
        assert account in there, where
        named = (
            account if account == "runlore-lookup" else account.removeprefix("lore-").removeprefix("runlore-")
        )
        assert named in (ROLES[component(labels)], "runlore-lookup"), where


def test_a_role_of_the_cloud_is_that_of_its_process(full):
    accounts = of_kind(full, "ServiceAccount")
    for name, role in {
        "lore-worker": "worker",
        "lore-operator": "operator",
        "lore-topics": "operator",
    }.items():
        arn = accounts[name]["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        assert arn.endswith(f":role/runlore-{role}"), name
    assert "annotations" not in accounts["lore-sweeper"]["metadata"]
    assert "lore-serve" not in accounts, "it is there already, under the name that was given"


class Network:
    """What policies allow, as Kubernetes adds them up: nothing but what some rule names."""

    def __init__(self, objects):
        self.policies = [one["spec"] for one in of_kind(objects, "NetworkPolicy").values()]

    def of(self, labels, direction):
        mine = [one for one in self.policies if selects(one["podSelector"], labels)]
        assert any(direction.capitalize() in one["policyTypes"] for one in mine), "nothing denies the rest"
        return [rule for one in mine for rule in one.get(direction, ())]

    def ports(self, labels, direction):
        """Port → peers (None: anybody)."""
        found = {}
        for rule in self.of(labels, direction):
            assert rule["ports"], "a rule without ports is for all of them"
            for port in rule["ports"]:
                found.setdefault(port["port"], []).append(rule.get("from", rule.get("to")))
        return found


def test_nothing_goes_in_or_out_that_is_not_named(full):
    network = Network(full)
    for where, labels, _ in pods(full):
        out = network.ports(labels, "egress")
        # What one process may besides: here the admin service, to a mail server.
        more = out.pop(587, [])
        assert more == [[{"ipBlock": {"cidr": "10.30.0.0/16"}}]] * (component(labels) == "admin"), where
        assert set(out) <= {53, 443, 9093, 4318}, where
        assert (9093 in out) == (labels["runlore.io/bus"] == "true"), where
        # The store's addresses, and those of a model where the pod may ask one.
        to = [peer for peers in out[443] for peer in peers or [None]]
        model = labels.get("runlore.io/model") == "true"
        assert to == [{"ipBlock": {"cidr": "10.20.0.0/16"}}] + [None] * model, where
        within = network.ports(labels, "ingress")
        assert set(within) <= {"http", "metrics"} and all(peers for each in within.values() for peers in each)
        assert ("http" in within) == (component(labels) in ("lookup", "admin")), where


def test_nobody_reaches_the_admin_service_or_the_metrics_until_somebody_is_named(full):
    minimal = Network(read("minimal.yaml"))
    lookup = {"app.kubernetes.io/name": "runlore", "app.kubernetes.io/instance": helm.RELEASE}
    found = minimal.ports({**lookup, "app.kubernetes.io/component": "lookup"}, "ingress")
    assert found == {"http": [[{"podSelector": {}}]]}
    assert minimal.ports({**lookup, "app.kubernetes.io/component": "admin"}, "ingress") == {}
    (peers,) = Network(full).ports({**lookup, "app.kubernetes.io/component": "admin"}, "ingress")["http"]
    assert peers[0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "platform"}


def test_a_sweeper_has_no_way_to_kafka(made):
    for where, labels, spec in pods(made):
        if component(labels) == "job-sweep":
            assert labels["runlore.io/bus"] == "false", where
            assert not [name for name in environment(spec) if name in SECRETS and "KAFKA" in name], where


def test_a_sweep_does_its_work_with_what_its_job_is_given(moto, monkeypatch, tmp_path, capsys):
    """For real, on a store: an empty home, and brokers that it could not reach."""
    (spec,) = [spec for _, labels, spec in pods(read("minimal.yaml")) if component(labels) == "job-sweep"]
    for name, one in environment(spec).items():
        monkeypatch.setenv(name, one["value"])
    for name, value in {**moto.environment("helm/"), "RUNLORE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["runlore", *spec["containers"][0]["args"]])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code in (None, 0), capsys.readouterr()


# --- values -----------------------------------------------------------------------------------------------------

WRONG = {
    "a misspelt value": {"wokers": {}},
    "a misspelt value of a worker": {"workers": {"record": {"replcias": 3}}},
    "a setting that is none": {"settings": {"log_levle": "info"}},
    "a setting beyond its limit": {"settings": {"lanes": 65}},
    "a setting of another kind": {"settings": {"lanes": "many"}},
    "a secret in the settings": {"settings": {"model_key": "sk-1"}},
    "a secret by way of the environment": {"pod": {"extraEnv": [{"name": "RUNLORE_KEY", "value": "x"}]}},
    "a stage that is none": {"workers": {"record": {"stages": ["recrod"]}}},
    "no stage": {"workers": {"record": {"stages": []}}},
    "a half of a drain": {"drainSeconds": 0.5},
    "brokers without a port": {"kafka": {"servers": "kafka"}},
    "a prefix without its end": {"s3": {"prefix": "acme"}},
    "a digest that is none": {"image": {"digest": "sha256:abc"}},
    "a name that breaks out of YAML": {"fullnameOverride": "x\n  evil: true"},
    "a secret's name that breaks out of YAML": {"kafka": {"existingSecret": "a, key: b}"}},
    "a role that breaks out of YAML": {"jobs": {"sweep": {"role": "a, x: b"}}},
    "a secret setting that is none": {
        "services": {"admin": {"secretSettings": {"log_level": {"secret": "a", "key": "b"}}}}
    },
    "a way out without a port": {"services": {"admin": {"egress": [{"to": []}]}}},
    "no port to the store": {"networkPolicy": {"s3": {"ports": []}}},
    "a peer that is everybody": {"networkPolicy": {"admin": {"from": [{}]}}},
    "a service of another role": {"services": {"lookup": {"role": "operator"}}},
    "a schedule that is none": {"jobs": {"sweep": {"schedule": "nightly"}}},
}


def merged(base, more):
    out = copy.deepcopy(base)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if both else value
    return out


@pytest.fixture(scope="module")
def schema():
    found = json.loads((helm.CHART / "values.schema.json").read_text("utf-8"))
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


@pytest.fixture(scope="module")
def defaults():
    return yaml.safe_load((helm.CHART / "values.yaml").read_text("utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_the_schema_takes_what_is_meant(name, schema, defaults):
    schema.validate(defaults)
    schema.validate(merged(defaults, yaml.safe_load((helm.CHART / "ci" / name).read_text("utf-8"))))


@pytest.mark.parametrize("what", WRONG)
def test_the_schema_refuses_what_is_not(what, schema, defaults):
    assert list(schema.iter_errors(merged(defaults, WRONG[what]))), what


# --- with Helm --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def with_helm():
    """Helm is there. Where RUNLORE_TEST_REQUIRE names it, it is built."""
    try:
        helm.fetch() if helm.missing() and _is_asked_for() else need("helm", helm.missing())
    except RuntimeError as exc:
        need("helm", str(exc))


def _is_asked_for():
    import brokers

    return brokers.is_required("helm")


@pytest.mark.parametrize("name", CASES)
def test_helm_makes_what_is_kept_and_finds_nothing_to_say(name, with_helm):
    values = helm.CHART / "ci" / name
    assert helm.rendered(values) == (helm.RENDERED / name).read_text("utf-8")
    strict = ("--strict", "--quiet", "--kube-version", helm.KUBERNETES)
    done = helm.run("lint", *strict, "--values", str(values), str(helm.CHART))
    assert done.returncode == 0 and "[WARNING]" not in done.stdout, done.stdout + done.stderr


REFUSED = {
    "no bucket": (("s3.bucket=",), "s3.bucket is needed"),
    "no brokers": (("kafka.servers=",), "kafka.servers is needed"),
    "a login without a secret": (("kafka.existingSecret=",), "kafka.existingSecret names a secret"),
    "more workers than partitions": (
        ("workers.record.autoscaling.kind=hpa", "workers.record.autoscaling.maxReplicas=9"),
        "9 workers for 8 partitions",
    ),
    "KEDA for what reads no topic": (
        ("workers.consolidate.autoscaling.kind=keda",),
        "consolidate reads no topic",
    ),
    "a summary without a model": (("workers.summarize.enabled=true",), "summarize asks a model"),
    "a job of a role without an account": (
        ("jobs.sweep.role=admin",),
        "no service account of the role admin",
    ),
    "an ingress without a host": (("services.lookup.ingress.enabled=true",), "ingress.host is needed"),
    "a misspelt value": (("wokers.record.replicas=2",), "additional properties 'wokers' not allowed"),
    "a setting beyond its limit": (("settings.lanes=65",), "maximum"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_helm_refuses_and_says_why(what, with_helm):
    given, why = REFUSED[what]
    words = [word for one in given for word in ("--set", one)]
    with pytest.raises(RuntimeError, match=re.escape(why)):
        helm.template("--values", str(helm.CHART / "ci" / "minimal.yaml"), *words)


def test_any_other_secret_setting_is_named_too(with_helm):
    """Which there are the schema says, by the program's own settings; there is none at the time of writing."""
    given = "services.admin.secretSettings.mail_password"
    words = ("--set", "services.admin.enabled=true", "--set", f"{given}.secret=mail,{given}.key=password")
    text = helm.template(
        "--values", str(helm.CHART / "ci" / "minimal.yaml"), "--skip-schema-validation", *words
    )
    found = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]
    holds = {
        component(labels): environment(spec)["RUNLORE_MAIL_PASSWORD"]["valueFrom"]["secretKeyRef"]
        for _, labels, spec in pods(found)
        if "RUNLORE_MAIL_PASSWORD" in environment(spec)
    }
    assert holds == {"admin": {"name": "mail", "key": "password"}}


NOTES = {
    "minimal.yaml": (
        "helm test lore --namespace memory",
        "runlore topics apply",
        "http://lore-runlore-lookup.memory:80",
    ),
    "full.yaml": ("deploy/lore-toolbox -- runlore keys create acme", "http://lore-lookup.memory:80"),
    "open.yaml": ("networkPolicy is off",),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_after_an_installation_fits_what_was_installed(name, with_helm, tmp_path):
    """Helm shows the notes to whoever has a cluster alone: here they are made a value of an object."""
    chart = tmp_path / "runlore"
    shutil.copytree(helm.CHART, chart)
    lines = (chart / "templates/NOTES.txt").read_text("utf-8").splitlines()
    text = "notes: |\n" + "".join(f"  {line}\n" for line in lines)
    (chart / "templates/notes.yaml").write_text(text, "utf-8")
    place = (
        "--namespace",
        helm.NAMESPACE,
        "--kube-version",
        helm.KUBERNETES,
        "--show-only",
        "templates/notes.yaml",
    )
    values = ("--values", str(chart / "ci" / name))
    done = helm.run("template", helm.RELEASE, str(chart), *place, *values)
    assert done.returncode == 0, done.stderr
    notes = yaml.safe_load(done.stdout)["notes"]
    assert notes.startswith(f"Runlore {runlore.__version__} as lore in memory.")
    assert "! No worker" not in notes and all(part in notes for part in NOTES[name]), notes
    values += ("--set", "workers.record.enabled=false")
    done = helm.run("template", helm.RELEASE, str(chart), *place, *values)
    assert "! No worker here runs record" in done.stdout, done.stdout
