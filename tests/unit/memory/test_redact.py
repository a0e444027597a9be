"""Redaction: known token shapes go, everything else stays byte for byte."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlore.events import records
from runlore.memory import redact

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "openai-key": ["sk-" + "proj-" + "aB3_" * 10, "sk-" + "aB3dE5fG7h" * 4],
    "anthropic-key": ["sk-" + "ant-api03-" + "aB3_" * 10],
    "aws-key-id": ["AKIA" + "ABCDEFGHIJKLMNOP", "ASIA" + "ABCDEFGH2345MNOP"],
    "github-token": ["ghp_" + "aB3d" * 9, "github_pat_" + "aB3d" * 20],
    "slack-token": ["xoxb-" + "123456789012-123456789012-" + "aB3d" * 6],
    "google-key": ["AIza" + "aB3dE" * 7],
    "runlore-key": [f"{one}_" + "01a2" * 8 + "_" + "ab12" * 16 for one in ("rl", "rla", "rli")],
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
    "url_01a201a201a201a201a201a201a201a2_" + "ab12" * 16,
    "key 01a201a201a201a201a201a201a201a2 begins with rl_",
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


# What `_HINT` looks for, put together as above, and what may stand before and after it.
_PIECES = st.sampled_from(
    [
        *(
            "sk-" + "proj-" + "a1B2" * 8,
            "sk-" + "a1" * 20,
            "task-sk-1",
            "\nsk-" + "a1" * 20,
            "\u00e4sk-" + "b2" * 20,
        ),
        *("AKIA" + "A" * 16, "ghp_" + "a" * 36, "xoxb-" + "1" * 12, "hf_" + "a" * 34, "glpat-" + "a" * 20),
        *("eyJ" + "a" * 9 + ".eyJ" + "b" * 9 + "." + "c" * 12, "AIza" + "a" * 35, "npm_" + "a" * 36),
        *("Bearer " + "a1" * 12, "bearer\n" + "a1" * 12, "Bearer\u2003" + "a1" * 12, "forbearer", "basic"),
        *("Authorization: Basic " + "abcdefgh1", "://", "me@example.com", "https://host/@x"),
        *("https://user:" + "secret@host/", "postgres://u:" + "\u00e4" * 150 + "@h"),
        *(
            "aws_secret_access_key=" + "A" * 40,
            "Ses\u017fion_To\u212aen: " + "A" * 40,
            "SecretAccess\u212aey=" + "b" * 40,
        ),
        *("plain text", '"', "\\", "\n", "\u00e4", "\U0001f600", "-----BEGIN " + "PRIVATE KEY-----abc"),
    ]
)


def _spelled(text, dice):
    """`text` as a JSON string, each character as itself or as any escape that means it."""
    out = []
    for char in text:
        units = char.encode("utf-16-be")
        escaped = "".join(f"\\u{unit:04x}" for unit in struct.unpack(f">{len(units) // 2}H", units))
        ways = [json.dumps(char)[1:-1]] * 20 + [escaped] + ["\\/"] * (4 * (char == "/"))
        out.append(dice.choice(ways))
    return '"' + "".join(out) + '"'


@given(
    st.lists(st.lists(_PIECES, max_size=4).map("".join), max_size=5),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_a_look_at_the_whole_line_passes_over_nothing_that_a_look_at_each_string_finds(texts, dice, plain):
    spelled = [json.dumps(text) if plain else _spelled(text, dice) for text in texts]
    line = '{"input":[' + ",".join(spelled) + "]}"
    counts = redact.Counter()
    each = records.map_strings(line, lambda value: redact._redact(value, counts))
    assert redact.line(line) == (each, dict(sorted(counts.items())))
