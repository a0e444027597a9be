"""Alert rules, dashboard and runbook say the same: metrics that exist, a section each, and each alert can fire."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from runlore import telemetry

FOREIGN = {"up", "ALERTS", "process_resident_memory_bytes", "process_cpu_seconds_total"}
"""Prometheus's own, and those of its client library."""
SCENARIOS = ("alerts.test.yml", "alerts.day.test.yml", "alerts.lookup.test.yml")
LABELS_OF_PROMETHEUS = {"instance", "job", "le", "alertname", "alertstate"}


def names_in(expression):
    """Every metric that an expression names: words that are no function, label or keyword, outside of strings."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    words = re.findall(r"[a-zA-Z_][a-zA-Z0-9_:]*(?!\s*\()\b", bare)
    keywords = {"and", "or", "unless", "offset", "by", "on", "sum", "max", "min", "count", "rate", "increase"}
    return {
        word for word in words if word not in keywords and not re.fullmatch(r"offset|[0-9]+[smhd]|d", word)
    }


def labels_in(expression):
    inside = re.findall(r"\{([^}]*)\}", expression)
    by = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    found = {label for text in inside for label in re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", text)}
    return found | {label.strip() for text in by for label in text.split(",")}


def dashboards_of(infra):
    return [
        json.loads(path.read_text("utf-8")) for path in sorted((infra / "grafana/dashboards").glob("*.json"))
    ]


@pytest.fixture(scope="module")
def known(infra):
    """Every name that an expression may use, and its labels."""
    found = {}
    for one in telemetry.METRICS:
        suffixes = ("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",)
        found |= {one.name + suffix: set(one.labels) for suffix in suffixes}
    groups = yaml.safe_load((infra / "prometheus/alerts.yml").read_text("utf-8"))["groups"]
    recorded = {one["record"]: {"stage"} for group in groups for one in group["rules"] if "record" in one}
    return found | recorded | {name: set() for name in FOREIGN}


@pytest.fixture(scope="module")
def expressions(infra):
    """(where, expression) of every rule and every panel."""
    groups = yaml.safe_load((infra / "prometheus/alerts.yml").read_text("utf-8"))["groups"]
    found = [(one.get("alert", one.get("record")), one["expr"]) for group in groups for one in group["rules"]]
    for dashboard in dashboards_of(infra):
        title = dashboard["title"]
        found += [(f"{title}: {note['name']}", note["expr"]) for note in dashboard["annotations"]["list"]]
        for panel in dashboard["panels"]:
            where = f"{title}: {panel['title']}"
            found += [(where, target["expr"]) for target in panel.get("targets", ())]
    return found


def test_every_metric_and_label_in_rules_and_panels_exists(expressions, known):
    assert len(expressions) > 40
    for where, text in expressions:
        used = names_in(text)
        assert used and used <= known.keys(), f"{where}: {used - known.keys()}"
        labels = set().union(*(known[name] for name in used)) | LABELS_OF_PROMETHEUS
        assert labels_in(text) <= labels, f"{where}: {labels_in(text) - labels}"


def test_states_outcomes_and_statuses_in_rules_are_those_that_are_reported(expressions):
    for where, text in expressions:
        for state in re.findall(r'(?<!alert)state!?="([a-z]+)"', text):
            assert state in telemetry.STATES, f"{where}: {state}"


def test_every_panel_of_a_dashboard_can_be_told_apart_and_says_what_it_shows(infra):
    for dashboard in dashboards_of(infra):
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({panel["title"] for panel in panels}) == len(panels), dashboard["title"]
        cells = [
            (x, y)
            for panel in panels
            for at in [panel["gridPos"]]
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, dashboard["title"]
        for panel in panels:
            if panel["type"] == "row":
                continue
            assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"] and all(one["legendFormat"] for one in panel["targets"]), panel["title"]
            names = [one["refId"] for one in panel["targets"]]
            assert len(set(names)) == len(names), panel["title"]


def test_a_dashboard_asks_the_prometheus_that_is_chosen_and_is_provisioned(infra):
    """Whoever imports one has another data source than the one of infra/compose.yaml."""
    dashboards = dashboards_of(infra)
    uids = [dashboard["uid"] for dashboard in dashboards]
    assert len(set(uids)) == len(uids) and {"runlore", "runlore-lookup", "runlore-models"} < set(uids)
    for dashboard in dashboards:
        (variable,) = dashboard["templating"]["list"]
        assert (variable["name"], variable["type"], variable["query"]) == (
            "datasource",
            "datasource",
            "prometheus",
        )
        text = json.dumps(dashboard)
        asked = re.findall(r'"datasource": (\{"type": "\w+", "uid": "[^"]*"\})', text)
        wanted = {"type": "prometheus", "uid": "${datasource}"}
        assert len(asked) == text.count('"datasource": '), dashboard["title"]
        assert all(json.loads(one) == wanted for one in asked), dashboard["title"]
        assert dashboard["tags"] == ["runlore"], "the menu of each lists those with this tag"
    provider = yaml.safe_load((infra / "grafana/provisioning/dashboards/runlore.yml").read_text("utf-8"))
    compose = (infra / "compose.yaml").read_text("utf-8")
    assert f"./grafana/dashboards:{provider['providers'][0]['options']['path']}:ro" in compose


def test_every_metric_is_on_some_dashboard(infra, expressions):
    shown = set().union(*(names_in(text) for where, text in expressions if ": " in where))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    recorded = {"runlore:lag_messages": "runlore_lag_messages"}
    recorded["runlore:oldest_age_seconds"] = "runlore_oldest_unprocessed_age_seconds"
    shown |= {recorded[name] for name in shown if name in recorded}
    assert {one.name for one in telemetry.METRICS} - shown == set()


def test_promtool_takes_every_expression_of_every_panel(infra, expressions, promtool, tmp_path):
    rules = [
        # What Grafana fills in when it asks.
        {
            "record": f"panel:{number}",
            "expr": text.replace("$__rate_interval", "5m").replace("$__range", "6h"),
        }
        for number, (_, text) in enumerate(expressions)
    ]
    assert not [one for one in rules if "$" in one["expr"]]
    (tmp_path / "panels.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), "utf-8"
    )
    code, output = promtool("check", "rules", tmp_path / "panels.yml")
    assert code == 0 and f"{len(rules)} rules found" in output, output
    rules[0]["expr"] = "sum by (stage (up)"
    (tmp_path / "panels.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), "utf-8"
    )
    assert promtool("check", "rules", tmp_path / "panels.yml")[0] != 0


def test_every_alert_has_its_section_and_its_row_and_every_section_its_alert(infra, rules):
    text = (infra.parent / "docs/OPERATIONS.md").read_text("utf-8")
    sections = dict(re.findall(r"^### (Runlore\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    assert sections.keys() == rules.keys()
    for name, one in rules.items():
        assert one["annotations"]["runbook_url"] == f"docs/OPERATIONS.md#{name.lower()}"
        assert one["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert one["labels"]["severity"] in ("page", "ticket")
        found = re.findall(r"^\*\*([A-Z][a-z ]+\.)\*\*", sections[name], re.M)
        assert found == ["Means.", "Users notice.", "Look.", "Do.", "Over when."], f"{name} has {found}"
    table = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| `(\w+)` \|", text, re.M)
    severities = {name: one["labels"]["severity"] for name, one in rules.items()}
    assert {name: severity for name, _, severity in table} == severities
    assert [severity for _, _, severity in table] == sorted(severities.values()), "what wakes comes first"
    assert all(anchor == name.lower() for name, anchor, _ in table)


def test_promtool_takes_the_rules_and_the_configuration(infra, promtool):
    for words in (
        ("check", "rules", infra / "prometheus/alerts.yml"),
        ("check", "config", infra / "prometheus/prometheus.yml"),
    ):
        code, output = promtool(*words)
        assert code == 0, output


@pytest.mark.parametrize("scenarios", SCENARIOS)
def test_alerts_fire_when_they_should_and_only_then(infra, promtool, scenarios):
    code, output = promtool("test", "rules", infra / "prometheus" / scenarios)
    assert code == 0, output


def test_each_alert_fires_in_a_scenario(infra, rules):
    """Each scenario gives the whole set that fires, so without its rule it would fail."""
    texts = [(infra / "prometheus" / name).read_text("utf-8") for name in SCENARIOS]
    assert set(re.findall(r'alertname="(\w+)"', "".join(texts))) == rules.keys()


def test_a_rule_that_never_fires_is_caught(infra, promtool, tmp_path):
    text = (infra / "prometheus/alerts.yml").read_text("utf-8")
    mutant = text.replace('state="failed"}) == 1', 'state="failed"}) == 2')
    assert mutant != text
    (tmp_path / "alerts.yml").write_text(mutant, "utf-8")
    (tmp_path / "t.yml").write_text((infra / "prometheus/alerts.test.yml").read_text("utf-8"), "utf-8")
    code, output = promtool("test", "rules", tmp_path / "t.yml")
    assert code != 0 and "RunloreStageFailed" in output
