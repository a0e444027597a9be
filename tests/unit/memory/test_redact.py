"""Redaction: known token shapes go, everything else stays byte for byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlore.events import records
from runlore.memory import keywords, redact

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
        ("postgres://anna:geheim@db:5432/x", "postgres://anna:[redacted:url-credentials]@db:5432/x"),
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


KEY, OTHER = b"k" * 32, b"o" * 32
TOKEN = SECRETS["github-token"][0]


def test_equal_secrets_are_linkable_under_one_key_and_not_across_keys():
    first = redact.text(f"push {TOKEN}", KEY)
    assert redact.placeholder("github-token", TOKEN, KEY) in redact.text(f"GH={TOKEN};", KEY)
    assert redact.PLACEHOLDER.fullmatch(first.removeprefix("push "))
    assert TOKEN[4:] not in first and first != redact.text(f"push {TOKEN}", OTHER)
    assert redact.text(f"push {TOKEN}") == "push [redacted:github-token]"


def test_a_secret_spelled_otherwise_has_the_same_hash():
    pem = SECRETS["private-key"][0]
    spelled = [pem, pem.replace("\n", "\\n"), pem.replace("\n", "\r\n"), pem.replace("\n", "\n    ")]
    assert len({redact.text(one, KEY) for one in spelled}) == 1


def test_the_password_of_a_url_is_the_same_secret_as_the_one_with_a_name():
    word = "t68tVkAKqiaJ42cL"
    (in_url,) = redact.PLACEHOLDER.findall(redact.text(f"postgres://anna:{word}@db:5432/x", KEY))
    (named,) = redact.PLACEHOLDER.findall(redact.text(f"PGPASSWORD={word}", KEY))
    assert in_url[1] == named[1]


@pytest.mark.parametrize("key", [None, KEY], ids=["without a key", "with a key"])
@pytest.mark.parametrize("old", ["[redacted:jwt]", "[redacted:jwt:0123456789ab]", "[redacted:openai-key]"])
def test_placeholders_of_every_version_stay_as_they_are(old, key):
    for body in (
        f"token={old}",
        f"Bearer {old}",
        f'{{"password": "{old}"}}',
        f"postgres://a:{old}@db/x",
        f"x{old}{old}",
    ):
        assert redact.text(body, key) == body


@pytest.mark.parametrize(
    "value",
    [
        {"password": "aB3dE5fG7hK"},
        {"a": {"db_password": "aB3dE5fG7hK", "n": 1}},
        {"x": '{"password": "aB3dE5fG7hK"}'},
    ],
    ids=["a field", "deep", "a string of JSON"],
)
def test_the_name_of_a_field_says_what_its_value_is(value):
    out, counts = redact.line(json.dumps(value))
    assert counts == {"named-secret": 1} and "aB3dE5fG7hK" not in out


_PARTS = st.sampled_from(
    [
        *INNOCENT,
        *(one for many in SECRETS.values() for one in many),
        *(
            "password",
            "api_key",
            "aB3dE5fG7hK",
            "--token",
            'x = "aB3dE5fG7hK"',
            "\\",
            '"',
            "\u2028\u00e4",
            "\0",
        ),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | _PARTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | _PARTS, inner, max_size=4),
    max_leaves=12,
)


def shape(value):
    """A value without what its strings say."""
    if isinstance(value, dict):
        return [shape(one) for one in value.values()]
    return (
        [shape(one) for one in value] if isinstance(value, list) else "" if isinstance(value, str) else value
    )


@given(st.dictionaries(st.text() | _PARTS, JSON, max_size=4), st.booleans())
def test_any_line_stays_one_of_which_only_strings_changed_and_a_second_pass_changes_nothing(value, is_ascii):
    line = json.dumps(value, ensure_ascii=is_ascii)
    out, counts = redact.line(line, KEY)
    assert (out == line) == (not counts)
    if len(json.loads(out)) == len(value):  # Two secrets of one key may not be two keys any more.
        assert shape(json.loads(out)) == shape(value) or counts
    assert redact.line(out, KEY) == (out, {})
    assert redact.line(out) == (out, {})


@given(JSON, st.booleans())
def test_what_is_searched_is_the_line_with_its_strings_decoded(value, is_ascii):
    line = json.dumps(value, ensure_ascii=is_ascii).replace("/", "\\/")
    assert records.decoded(line) == records.exactly_decoded(line)


def test_a_piece_of_a_placeholder_is_no_secret():
    """Summaries cut texts anywhere: a revision must not be held for what is left of a placeholder."""
    whole = redact.text(f"push with {TOKEN} now", KEY)
    for at in range(len(whole)):
        for piece in (whole[:at], whole[:at] + "…", whole[at:], "…" + whole[at:]):
            assert redact.text(piece) == piece


def test_no_word_to_search_by_comes_from_a_placeholder():
    whole = redact.text(f"push with {TOKEN} now", KEY)
    assert set(keywords.count([whole, whole[:40]])) == {"push", "with"}


def test_many_keys_without_their_end_hide_nothing_from_each_other():
    begin = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE" + "aB3d" * 20
    out, counts = redact.line(json.dumps({"input": [begin, TOKEN] * 20}))
    assert counts == {"github-token": 20, "private-key": 20}
    assert set(json.loads(out)["input"]) == {"[redacted:private-key]", "[redacted:github-token]"}


def test_a_key_written_as_several_strings_goes_to_its_end():
    begin, end = "-----BEGIN RSA " + "PRIVATE KEY-----", "-----END RSA " + "PRIVATE KEY-----"
    body = f'KEY = ("{begin}\\n"\n       "MIIEaB3d\\n"\n       "{end}")'
    assert redact.text(body) == 'KEY = ("[redacted:private-key]")'
