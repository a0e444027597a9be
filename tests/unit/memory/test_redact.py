"""Redaction: known token shapes go, everything else stays byte for byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlore.memory import redact

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "openai-key": ["sk-" + "proj-" + "aB3_" * 10, "sk-" + "aB3dE5fG7h" * 4],
    "anthropic-key": ["sk-" + "ant-api03-" + "aB3_" * 10],
    "aws-key-id": ["AKIA" + "ABCDEFGHIJKLMNOP", "ASIA" + "ABCDEFGH2345MNOP"],
    "github-token": ["ghp_" + "aB3d" * 9, "github_pat_" + "aB3d" * 20],
    "slack-token": ["xoxb-" + "123456789012-123456789012-" + "aB3d" * 6],
    "google-key": ["AIza" + "aB3dE" * 7],
    "stripe-key": ["sk_" + "live_" + "aB3d" * 6],
    "jwt": ["eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJ" + "zdWIiOiIxMjM0In0." + "aB3dE5fG7hI9"],
    "private-key": ["-----BEGIN RSA " + "PRIVATE KEY-----\nMIIabc\n-----END RSA " + "PRIVATE KEY-----"],
}
INNOCENT = [
    "sk-learn is a library; see sk-image",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "Bearer authentication is described in RFC 6750",
    "the bearer of this letter from 2024-05-01 may enter the building",
    "https://example.com:8080/path?q=a@b",
    "git@github.com:owner/repo.git",
    "postgres://localhost:5432/db",
    "https://${USER}:${PASSWORD}@host/",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "ghp_ is the prefix of a token",
    "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----",
    "eyJ is how a token begins",
    "update_reservation_flights credit_card_4421486",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
]


@pytest.mark.parametrize(("kind", "secret"), [(kind, one) for kind, many in SECRETS.items() for one in many])
def test_a_known_token_shape_is_replaced_wherever_it_stands(kind, secret):
    line = json.dumps({"a": [f"x {secret} y", {"b": secret}], secret: 1})
    out, counts = redact.line(line)
    assert counts == {kind: 3}
    assert json.loads(out)["a"] == [f"x [redacted:{kind}] y", {"b": f"[redacted:{kind}]"}]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("Authorization: Bearer " + "aB3d.E5fG-7hI9" * 2, "Authorization: Bearer [redacted:bearer]"),
        ("postgres://anna:geheim@db:5432/x", "postgres://[redacted:url-credentials]@db:5432/x"),
        ("aws_secret_access_key = " + "aB3/" * 10, "aws_secret_access_key = [redacted:aws-secret]"),
    ],
)
def test_only_the_secret_part_of_a_place_is_replaced(body, wanted):
    assert redact.text(body) == wanted


@pytest.mark.parametrize("body", INNOCENT)
def test_ordinary_text_stays(body):
    assert redact.text(body) == body


@given(
    st.lists(
        st.sampled_from([*INNOCENT, *(one for many in SECRETS.values() for one in many)]) | st.text(),
        max_size=6,
    )
)
def test_redacting_twice_is_redacting_once(parts):
    once = redact.text(" ".join(parts))
    assert redact.text(once) == once


@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_a_line_without_secrets_keeps_every_byte(value):
    line = json.dumps(value, ensure_ascii=False)
    if not redact.line(line)[1]:
        assert redact.line(line) == (line, {})


def test_a_secret_with_escapes_in_its_json_is_found():
    key = SECRETS["private-key"][0]
    out, counts = redact.line(json.dumps({"k": key}))
    assert counts == {"private-key": 1}
    assert "MIIabc" not in out
