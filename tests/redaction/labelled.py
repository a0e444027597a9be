"""The labelled set of redaction: secrets in surroundings, and what only looks like one.

Everything is made at run time from a fixed seed: no secret here was ever good, and no scanner finds one in this
file. Kinds and surroundings are dealt to two halves by a hash of their names, before any rule was written, so
that nobody chose: rules may be tuned on `TUNING`; `HELD_OUT` has other kinds in other surroundings, and only the
benchmark's totals of it may be looked at. Whoever looks at its cases to mend a rule must deal a new half.
"""

from __future__ import annotations

import base64
import hashlib
import json
import textwrap
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from innocent import NEGATIVES

TUNING, HELD_OUT = "tuning", "held-out"
HALVES = (TUNING, HELD_OUT)
CASES_PER_PAIR = 1

_DIGITS = "0123456789"
_HEX = _DIGITS + "abcdef"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER = _UPPER.lower()
_BASE62 = _DIGITS + _UPPER + _LOWER
_BASE64 = _BASE62 + "+/"
_URLSAFE = _BASE62 + "-_"


class Draw:
    """Letters from a hash of a name: the same on every machine and in every version of Python."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count, self._pool = seed, 0, b""

    def _byte(self) -> int:
        if not self._pool:
            self._pool = hashlib.sha256(f"{self._seed}/{self._count}".encode()).digest()
            self._count += 1
        first, self._pool = self._pool[0], self._pool[1:]
        return first

    def of(self, alphabet: str, count: int) -> str:
        return "".join(alphabet[(self._byte() << 8 | self._byte()) % len(alphabet)] for _ in range(count))

    def raw(self, count: int) -> bytes:
        return bytes(self._byte() for _ in range(count))

    def pick(self, options: tuple[str, ...]) -> str:
        return options[self._byte() % len(options)]

    def b64(self, count: int) -> str:
        return base64.b64encode(self.raw(count)).decode()

    def password(self) -> str:
        """Sixteen to twenty characters of four classes, as a password manager makes them."""
        body = self.of(_BASE62 + "!#%*+_.-", 12 + self._byte() % 5)
        return self.of(_LOWER, 1) + self.of(_DIGITS, 1) + self.of("!#%*", 1) + self.of(_UPPER, 1) + body


@dataclass(frozen=True)
class Secret:
    """What stands in a text: `body`, of which the parts `hidden` must go; `name` is what programs call it."""

    body: str
    name: str
    hidden: tuple[str, ...]
    is_whole: bool = False
    """Whether the body is a text of its own (a URL, a header) that no surroundings may name or quote anew."""


@dataclass(frozen=True)
class Case:
    """One text and what must go from it; `kind` begins with `not-` where nothing must."""

    half: str
    kind: str
    surroundings: str
    text: str
    hidden: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}@{self.surroundings}"


def half_of(name: str) -> str:
    return HALVES[hashlib.sha256(f"half/{name}".encode()).digest()[0] % 2]


def _named(name: str, make: Callable[[Draw], str]) -> Callable[[Draw], Secret]:
    def secret(draw: Draw) -> Secret:
        body = make(draw)
        return Secret(body, name, (body,))

    return secret


def _place(make: Callable[[Draw], tuple[str, str]]) -> Callable[[Draw], Secret]:
    def secret(draw: Draw) -> Secret:
        body, hidden = make(draw)
        return Secret(body, "", (hidden,), is_whole=True)

    return secret


def _base62(number: int, width: int) -> str:
    out = ""
    while number:
        number, rest = divmod(number, 62)
        out = _BASE62[rest] + out
    return out.rjust(width, "0")


def _with_checksum(prefix: str, body: str) -> str:
    """As GitHub and npm make theirs: the last six characters are a CRC-32 of the others."""
    return prefix + body + _base62(zlib.crc32(body.encode()), 6)


def _jwt(draw: Draw) -> str:
    def part(value: object) -> str:
        return (
            base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")
        )

    claims = {"sub": draw.of(_DIGITS, 10), "iat": 1_700_000_000 + draw.raw(1)[0], "scope": "read write"}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.{draw.of(_URLSAFE, 43)}"


def _pem(draw: Draw, label: str, size: int) -> str:
    lines = textwrap.wrap(draw.b64(size), 64)
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----"])


def _url(draw: Draw, scheme: str, user: str, host: str) -> tuple[str, str]:
    word = draw.of(_BASE62, 18)
    return f"{scheme}://{user}:{word}@{host}", word


def _basic(draw: Draw) -> tuple[str, str]:
    word = base64.b64encode(f"svc:{draw.of(_BASE62, 15)}".encode()).decode()
    return f"Authorization: Basic {word}", word


def _azure(draw: Draw) -> tuple[str, str]:
    word = draw.b64(64)
    account = "DefaultEndpointsProtocol=https;AccountName=runstore"
    return f"{account};AccountKey={word};EndpointSuffix=core.windows.net", word


def _around(before: str, after: str, make: Callable[[Draw], str]) -> Callable[[Draw], Secret]:
    return _place(lambda draw: (before + (word := make(draw)) + after, word))


KINDS: dict[str, Callable[[Draw], Secret]] = {
    "openai": _named(
        "OPENAI_API_KEY",
        lambda d: "sk-" + "proj-" + d.of(_URLSAFE, 74) + "T3Blbk" + "FJ" + d.of(_URLSAFE, 74),
    ),
    "openai-old": _named(
        "OPENAI_API_KEY", lambda d: "sk-" + d.of(_BASE62, 20) + "T3Blbk" + "FJ" + d.of(_BASE62, 20)
    ),
    "anthropic": _named("ANTHROPIC_API_KEY", lambda d: "sk-" + "ant-api03-" + d.of(_URLSAFE, 93) + "AA"),
    "openrouter": _named("OPENROUTER_API_KEY", lambda d: "sk-" + "or-v1-" + d.of(_HEX, 64)),
    "groq": _named("GROQ_API_KEY", lambda d: "gs" + "k_" + d.of(_BASE62, 52)),
    "xai": _named("XAI_API_KEY", lambda d: "xa" + "i-" + d.of(_BASE62, 80)),
    "replicate": _named("REPLICATE_API_TOKEN", lambda d: "r8" + "_" + d.of(_BASE62, 37)),
    "perplexity": _named("PERPLEXITY_API_KEY", lambda d: "pp" + "lx-" + d.of(_BASE62, 48)),
    "langsmith": _named(
        "LANGSMITH_API_KEY", lambda d: "lsv2" + "_pt_" + d.of(_HEX, 32) + "_" + d.of(_HEX, 10)
    ),
    "huggingface": _named("HF_TOKEN", lambda d: "h" + "f_" + d.of(_UPPER + _LOWER, 34)),
    "aws-id": _named("AWS_ACCESS_KEY_ID", lambda d: "AK" + "IA" + d.of(_UPPER + "234567", 16)),
    "aws-secret": _named("AWS_SECRET_ACCESS_KEY", lambda d: d.of(_BASE64, 40)),
    "github-classic": _named("GITHUB_TOKEN", lambda d: _with_checksum("gh" + "p_", d.of(_BASE62, 30))),
    "github-fine": _named(
        "GH_TOKEN", lambda d: "github" + "_pat_" + d.of(_BASE62, 22) + "_" + d.of(_BASE62, 59)
    ),
    "gitlab": _named("GITLAB_TOKEN", lambda d: "gl" + "pat-" + d.of(_URLSAFE, 20)),
    "slack-bot": _named(
        "SLACK_BOT_TOKEN",
        lambda d: "xo" + f"xb-{d.of('123456789', 12)}-{d.of('123456789', 13)}-{d.of(_BASE62, 24)}",
    ),
    "slack-webhook": _named(
        "SLACK_WEBHOOK_URL",
        lambda d: (
            "https://hooks.slack"
            + f".com/services/T{d.of(_UPPER, 10)}/B{d.of(_UPPER, 10)}/{d.of(_BASE62, 24)}"
        ),
    ),
    "google-api": _named("GOOGLE_API_KEY", lambda d: "AI" + "za" + d.of(_URLSAFE, 35)),
    "google-oauth": _named("GOOGLE_OAUTH_TOKEN", lambda d: "ya" + "29.a0" + d.of(_URLSAFE, 160)),
    "stripe": _named("STRIPE_SECRET_KEY", lambda d: "sk" + "_live_" + d.of(_BASE62, 99)),
    "npm": _named("NPM_TOKEN", lambda d: _with_checksum("np" + "m_", d.of(_BASE62, 30))),
    "pypi": _named("TWINE_PASSWORD", lambda d: "pypi" + "-AgEIcHlwaS5vcmc" + d.of(_URLSAFE, 150)),
    "sendgrid": _named("SENDGRID_API_KEY", lambda d: "S" + f"G.{d.of(_URLSAFE, 22)}.{d.of(_URLSAFE, 43)}"),
    "twilio": _named("TWILIO_AUTH_TOKEN", lambda d: d.of(_HEX, 32)),
    "mailgun": _named("MAILGUN_API_KEY", lambda d: "ke" + "y-" + d.of(_HEX, 32)),
    "telegram": _named("TELEGRAM_BOT_TOKEN", lambda d: f"{d.of('123456789', 10)}:AA{d.of(_URLSAFE, 33)}"),
    "discord": _named(
        "DISCORD_BOT_TOKEN",
        lambda d: (
            f"{base64.b64encode(d.of('123456789', 18).encode()).decode()}.{d.of(_URLSAFE, 6)}.{d.of(_URLSAFE, 38)}"
        ),
    ),
    "digitalocean": _named("DIGITALOCEAN_TOKEN", lambda d: "dop" + "_v1_" + d.of(_HEX, 64)),
    "linear": _named("LINEAR_API_KEY", lambda d: "lin" + "_api_" + d.of(_BASE62, 40)),
    "notion": _named("NOTION_TOKEN", lambda d: "nt" + "n_" + d.of(_DIGITS, 11) + d.of(_BASE62, 35)),
    "shopify": _named("SHOPIFY_ACCESS_TOKEN", lambda d: "sh" + "pat_" + d.of(_HEX, 32)),
    "doppler": _named("DOPPLER_TOKEN", lambda d: "dp" + ".pt." + d.of(_BASE62, 43)),
    "vault": _named("VAULT_TOKEN", lambda d: "hv" + "s.CAESI" + d.of(_URLSAFE, 90)),
    "databricks": _named("DATABRICKS_TOKEN", lambda d: "da" + "pi" + d.of(_HEX, 32)),
    "grafana": _named("GRAFANA_TOKEN", lambda d: "gl" + f"sa_{d.of(_BASE62, 32)}_{d.of(_HEX, 8)}"),
    "newrelic": _named("NEW_RELIC_API_KEY", lambda d: "NR" + "AK-" + d.of(_UPPER + _DIGITS, 27)),
    "postman": _named("POSTMAN_API_KEY", lambda d: "PM" + f"AK-{d.of(_HEX, 24)}-{d.of(_HEX, 34)}"),
    "docker": _named("DOCKER_TOKEN", lambda d: "dckr" + "_pat_" + d.of(_URLSAFE, 27)),
    "terraform": _named("TF_TOKEN_app", lambda d: d.of(_BASE62, 14) + ".atlas" + "v1." + d.of(_BASE62, 67)),
    "supabase": _named("SUPABASE_ACCESS_TOKEN", lambda d: "sb" + "p_" + d.of(_HEX, 40)),
    "airtable": _named("AIRTABLE_API_KEY", lambda d: "pa" + f"t{d.of(_BASE62, 14)}.{d.of(_HEX, 64)}"),
    "heroku": _named("HEROKU_API_KEY", lambda d: "HR" + "KU-AA" + d.of(_URLSAFE, 58)),
    "age": _named(
        "SOPS_AGE_KEY", lambda d: "AGE-SECRET" + "-KEY-1" + d.of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)
    ),
    "jwt": _named("ACCESS_TOKEN", _jwt),
    "django": _named("SECRET_KEY", lambda d: d.of(_LOWER + _DIGITS + "!@#%^&*(-_=+)", 50)),
    "named-password": _named("DB_PASSWORD", Draw.password),
    "named-passwd": _named("smtp_passwd", lambda d: d.of(_BASE62, 14)),
    "named-api-key": _named("WEATHER_API_KEY", lambda d: d.of(_HEX, 32)),
    "named-token": _named("INTERNAL_AUTH_TOKEN", lambda d: d.of(_BASE62, 44)),
    "named-client-secret": _named("OAUTH_CLIENT_SECRET", lambda d: d.of(_URLSAFE, 40)),
    "named-encryption-key": _named("ENCRYPTION_KEY", lambda d: d.b64(32)),
    "named-signing-secret": _named("webhook_signing_secret", lambda d: d.of(_HEX, 64)),
    "url-postgres": _place(lambda d: _url(d, "postgresql", "app", "db.internal:5432/prod")),
    "url-redis": _place(lambda d: _url(d, "redis", "", "cache.internal:6379/0")),
    "url-mongodb": _place(lambda d: _url(d, "mongodb+srv", "ops", "cluster0.k3xyz.mongodb.net/app")),
    "url-https": _place(lambda d: _url(d, "https", "deploy", "git.example.org/team/repo.git")),
    "azure-storage": _place(_azure),
    "header-bearer": _around("Authorization: Bearer ", "", lambda d: d.of(_URLSAFE, 43)),
    "header-basic": _place(_basic),
    "header-api-key": _around("X-API-Key: ", "", lambda d: d.of(_BASE62, 40)),
    "cookie": _around("Cookie: lang=en; sessionid=", "; theme=dark", lambda d: d.of(_LOWER + _DIGITS, 32)),
    "curl-user": _around("curl -sS -u admin:", " https://ci.example.org/api/json", Draw.password),
    "query-token": _around(
        "GET https://api.example.org/v1/items?page=2&access_token=",
        "&per_page=50",
        lambda d: d.of(_BASE62, 40),
    ),
    "signed-url": _around(
        "https://bucket.s3.amazonaws.com/a.tar?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=",
        "",
        lambda d: d.of(_HEX, 64),
    ),
    "netrc": _around("machine api.example.org\n  login bot\n  password ", "\n", lambda d: d.of(_BASE62, 20)),
    "mysql-flag": _around(
        "mysqldump -h db -u root --password=", " shop > shop.sql", lambda d: d.of(_BASE62, 16)
    ),
    "npmrc": _around("//registry.example.org/:_authToken=", "\n", lambda d: d.of(_BASE62, 36)),
    "pem-rsa": _place(lambda d: (pem := _pem(d, "RSA PRIVATE" + " KEY", 600), pem)),
    "pem-openssh": _place(lambda d: (pem := _pem(d, "OPENSSH PRIVATE" + " KEY", 380), pem)),
    "pem-ec": _place(lambda d: (pem := _pem(d, "EC PRIVATE" + " KEY", 120), pem)),
    "pgp": _place(lambda d: (pem := _pem(d, "PGP PRIVATE" + " KEY BLOCK", 700), pem)),
}


def _camel(name: str) -> str:
    first, *rest = name.lower().split("_")
    return first + "".join(word.capitalize() for word in rest)


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


# What stands around a secret that has a name. Bare ones show it without; a kind whose value says nothing skips those.
SURROUNDINGS: dict[str, Callable[[Secret], str]] = {
    "env-dump": lambda s: (
        f"PATH=/usr/local/bin:/usr/bin\nHOME=/root\n{s.name}={s.body}\nLANG=C.UTF-8\nSHLVL=1\n"
    ),
    "export": lambda s: f'#!/bin/sh\nset -eu\nexport {s.name}="{s.body}"\nmake deploy',
    "json-pretty": lambda s: json.dumps(
        {"region": "eu-west-1", s.name.lower(): s.body, "retries": 3}, indent=2
    ),
    "json-camel": lambda s: json.dumps({"ok": True, "data": [{_camel(s.name): s.body, "id": 17}]}),
    "json-in-json": lambda s: json.dumps(
        {"body": json.dumps({s.name.lower(): s.body, "n": 1}), "status": 200}
    ),
    "yaml": lambda s: (
        f"services:\n  web:\n    environment:\n      {s.name}: {s.body}\n      DEBUG: 'false'\n"
    ),
    "yaml-quoted": lambda s: f"auth:\n  {s.name.lower().replace('_', '-')}: '{s.body}'\n  timeout: 30\n",
    "python": lambda s: (
        f'import os\n\nREGION = "eu"\n{s.name} = "{s.body}"\n\ndef main():\n    run({s.name})\n'
    ),
    "python-dict": lambda s: (
        f"DEBUG config={{'host': 'api.internal', '{s.name.lower()}': '{s.body}', 'tls': True}}"
    ),
    "diff": lambda s: f"@@ -1,3 +1,4 @@\n DEBUG=0\n+{s.name}={s.body}\n-PORT=80\n+PORT=8080\n",
    "docker-run": lambda s: f"docker run --rm -e {s.name}={s.body} -p 8080:80 registry.example.org/app:1.4",
    "dockerfile": lambda s: (
        f"FROM python:3.12-slim\nENV {s.name}={s.body}\nRUN pip install -r requirements.txt\n"
    ),
    "tfvars": lambda s: f'region      = "eu-central-1"\n{s.name.lower()} = "{s.body}"\nreplicas    = 2\n',
    "properties": lambda s: (
        f"server.port=8080\napp.{s.name.lower().replace('_', '.')}={s.body}\nlogging.level=INFO\n"
    ),
    "ini": lambda s: f"[remote]\nurl = https://api.example.org\n{s.name.lower()} = {s.body}\nverify = true\n",
    "traceback": lambda s: (
        'Traceback (most recent call last):\n  File "/app/main.py", line 12, in connect\n'
        f"    client = Client({s.name.lower()}='{s.body}', timeout=5)\nTypeError: unexpected argument"
    ),
    "log": lambda s: (
        f"2026-03-02T10:11:12Z WARN http.client retrying request {s.name.lower()}={s.body} attempt=2 of 5"
    ),
    "typescript": lambda s: (
        f"const cfg = {{ url: BASE, {_camel(s.name)}: '{s.body}' }};\nexport default cfg;"
    ),
    "flag": lambda s: (
        f"$ acme deploy --env prod --{s.name.lower().replace('_', '-')} {s.body} --yes\nDeployed 3 services"
    ),
    "set-command": lambda s: f"PS C:\\> $env:{s.name}='{s.body}'\nPS C:\\> npm publish",
    "prose-bare": lambda s: f"I found the credential in the wiki: {s.body} and used it for the upload.",
    "markdown-bare": lambda s: f"| what | value |\n|---|---|\n| key | `{s.body}` |\n| region | eu |\n",
    "list-bare": lambda s: json.dumps(["--quiet", s.body, "--output", "out.txt"]),
    "printed-bare": lambda s: f"$ cat /run/secrets/it\n{s.body}\n$ echo $?\n0\n",
}
# What stands around a text that is whole in itself.
WHOLE: dict[str, Callable[[Secret], str]] = {
    "whole-alone": lambda s: s.body,
    "whole-in-log": lambda s: (
        f"2026-03-02 10:11:12,345 DEBUG worker: sending\n{s.body}\n2026-03-02 10:11:13,001 DEBUG worker: done"
    ),
    "whole-in-json": lambda s: json.dumps({"cmd": s.body, "cwd": "/srv/app", "exit": 0}),
    "whole-in-json-in-json": lambda s: json.dumps({"output": json.dumps({"stdout": s.body, "code": 0})}),
    "whole-in-cat": lambda s: f"$ cat notes.txt\nremember:\n{s.body}\n$ ls\na.txt  b.txt",
    "whole-in-python": lambda s: f'VALUE = """{s.body}"""\nprint(len(VALUE))\n',
    "whole-in-markdown": lambda s: f"Steps to repeat:\n\n```\n{s.body}\n```\n\nThen open the page.",
    "whole-indented": lambda s: (
        "data:\n  content: |\n" + textwrap.indent(s.body, "    ") + "\n  mode: 0600\n"
    ),
}
_SILENT = ("aws-secret", "twilio", "django", "named-")
"""Kinds whose value alone says nothing: only their name makes them a secret."""


def _positives() -> Iterator[Case]:
    for kind, make in KINDS.items():
        is_whole = make(Draw(kind)).is_whole
        for around, write in (WHOLE if is_whole else SURROUNDINGS).items():
            if half_of(kind) != half_of(around) or ("bare" in around and kind.startswith(_SILENT)):
                continue
            secret = make(Draw(f"{kind}/{around}"))
            text = write(secret)
            yield Case(half_of(kind), kind, around, text, tuple(_shown(one, text) for one in secret.hidden))


def _shown(hidden: str, text: str) -> str:
    """A secret as its surroundings spell it: escaped once or twice, or indented."""
    for spelled in (
        hidden,
        _escaped(hidden),
        _escaped(_escaped(hidden)),
        textwrap.indent(hidden, "    ").lstrip(),
    ):
        if spelled in text:
            return spelled
    raise AssertionError(f"a secret is not in its own text: {text[:80]}")


def cases(half: str) -> list[Case]:
    """Every case of a half, the hard negatives too."""
    found = [case for case in _positives() if case.half == half]
    for kind, write in NEGATIVES.items():
        if half_of(kind) == half:
            found += [
                Case(half, f"not-{kind}", str(number), write(Draw(f"{kind}/{number}")))
                for number in range(12)
            ]
    return found
