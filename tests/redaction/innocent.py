# ruff: noqa: E501 — templates are read better on one line
"""Hard negatives of the labelled set: what looks like a secret and is none. A hit on one destroys knowledge."""

from __future__ import annotations

import base64
import hashlib
import json
import textwrap
from collections.abc import Callable
from typing import Any

Draw = Any
_HEX = "0123456789abcdef"
_B62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _uuid(d: Draw) -> str:
    return f"{d.of(_HEX, 8)}-{d.of(_HEX, 4)}-4{d.of(_HEX, 3)}-a{d.of(_HEX, 3)}-{d.of(_HEX, 12)}"


def _words(d: Draw, count: int) -> str:
    some = (
        "table",
        "merge",
        "index",
        "reader",
        "the",
        "value",
        "of",
        "row",
        "commit",
        "page",
        "test",
        "when",
        "is",
    )
    return " ".join(d.pick(some) for _ in range(count))


def _placeholder(d: Draw) -> str:
    return d.pick(
        (
            "<YOUR_API_KEY>", "your-api-key-here", "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sk-...", "changeme",
            "${API_KEY}", "$API_KEY", "{{ api_key }}", "********", "REPLACE_ME", "xxxx-xxxx-xxxx", "<token>", "None",
            "${{ secrets.API_KEY }}", "your_token_goes_here", "[REDACTED]", "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        )
    )  # fmt: skip


NEGATIVES: dict[str, Callable[[Draw], str]] = {
    "git-log": lambda d: f"commit {d.of(_HEX, 40)}\nAuthor: A <a@example.org>\n\n    {_words(d, 6)}\n\n{d.of(_HEX, 7)} {_words(d, 3)}",
    "git-diff": lambda d: f"diff --git a/token.py b/token.py\nindex {d.of(_HEX, 10)}..{d.of(_HEX, 10)} 100644\n+token = tokens[i]\n",
    "git-submodule": lambda d: f"token-service secret={d.of(_HEX, 40)} (heads/main)\n".replace("secret=", "at "),
    "sha256sum": lambda d: f"{d.of(_HEX, 64)}  dist/app-1.2.tar.gz\n{d.of(_HEX, 32)}  dist/app.md5",
    "npm-lock": lambda d: f'"node_modules/js-tokens": {{\n  "version": "4.0.0",\n  "integrity": "sha512-{d.b64(64)}",\n  "license": "MIT" }}',
    "yarn-lock": lambda d: f'js-tokens@^4.0.0:\n  resolved "https://registry.yarnpkg.com/js-tokens/-/js-tokens-4.0.0.tgz#{d.of(_HEX, 40)}"\n  integrity sha512-{d.b64(64)}',
    "pip-hash": lambda d: f"secretstorage==3.3.3 \\\n    --hash=sha256:{d.of(_HEX, 64)} \\\n    --hash=sha256:{d.of(_HEX, 64)}",
    "poetry-lock": lambda d: f'[[package]]\nname = "keyring"\nfiles = [{{file = "keyring.whl", hash = "sha256:{d.of(_HEX, 64)}"}}]\ncontent-hash = "{d.of(_HEX, 64)}"',
    "go-sum": lambda d: f"github.com/golang-jwt/jwt/v5 v5.2.0 h1:{d.b64(32)}\ngithub.com/golang-jwt/jwt/v5 v5.2.0/go.mod h1:{d.b64(32)}",
    "cargo-lock": lambda d: f'[[package]]\nname = "secrecy"\nversion = "0.8.0"\nchecksum = "{d.of(_HEX, 64)}"',
    "uuid-id": lambda d: json.dumps({"key_id": _uuid(d), "token_id": _uuid(d), "session": {"id": _uuid(d)}}),
    "uuid-log": lambda d: f"2026-01-02 INFO request_id={_uuid(d)} trace_id={d.of(_HEX, 32)} span_id={d.of(_HEX, 16)} {_words(d, 4)}",
    "uuid-api": lambda d: f"GET /v1/api-keys/{_uuid(d)}/usage HTTP/1.1 200\nx-request-id: {_uuid(d)}",
    "call-ids": lambda d: json.dumps({"type": "function_call", "call_id": "call_" + d.of(_B62, 24), "id": "fc_" + d.of(_HEX, 48)}),
    "response-ids": lambda d: json.dumps({"id": "resp_" + d.of(_HEX, 50), "previous_response_id": "resp_" + d.of(_HEX, 50)}),
    "message-ids": lambda d: json.dumps({"id": "msg_" + d.of(_HEX, 48), "thread": "thread_" + d.of(_B62, 24), "run": "run_" + d.of(_B62, 24)}),
    "encrypted-reasoning": lambda d: json.dumps({"type": "reasoning", "summary": [], "encrypted_content": "gAAAAAB" + base64.urlsafe_b64encode(d.raw(200)).decode()}),
    "png": lambda d: "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA" + d.b64(400),
    "jpeg": lambda d: json.dumps({"image": "/9j/4AAQSkZJRgABAQAAAQABAAD" + d.b64(300)}),
    "base64-text": lambda d: f"$ base64 notes.md\n{textwrap.fill(base64.b64encode(_words(d, 40).encode()).decode(), 76)}",
    "base64-out": lambda d: f"echo {d.b64(24)} | base64 -d > out.bin",
    "font-css": lambda d: f"@font-face {{ src: url(data:font/woff2;base64,d09GMgABAAAAA{d.b64(120)}) }}",
    "sourcemap": lambda d: f"//# sourceMappingURL=data:application/json;base64,{base64.b64encode(json.dumps({'version': 3, 'sources': [_words(d, 5)]}).encode()).decode()}",
    "docs-env": lambda d: f"Set your key first:\n\n    export OPENAI_API_KEY={_placeholder(d)}\n    python app.py",
    "docs-json": lambda d: json.dumps({"api_key": _placeholder(d), "password": _placeholder(d), "region": "eu"}, indent=2),
    "docs-curl": lambda d: f'curl https://api.example.org/v1/items -H "Authorization: Bearer {_placeholder(d)}" -d "{{}}"',
    "docs-yaml": lambda d: f"auth:\n  token: {_placeholder(d)}\n  client_secret: {_placeholder(d)}\n",
    "docs-url": lambda d: f"DATABASE_URL=postgres://{d.pick(('${USER}:${PASSWORD}', '<user>:<password>', '$DB_USER:$DB_PASS'))}@db:5432/app",
    "code-python": lambda d: f'api_key = os.environ["API_KEY"]\ntoken = get_token(user.id, scope="read")\npassword = getpass.getpass("Password: ")\nsecret = self._secrets.get(name)\nn = {d.of("123456789", 4)}',
    "code-js": lambda d: f"const token = process.env.AUTH_TOKEN;\nconst apiKey = config.get('apiKey');\nif (password === confirmPassword) {{ setTokenCount(tokenCount + {d.of('123456789', 2)}) }}",
    "code-types": lambda d: f"class Login(BaseModel):\n    username: str\n    password: SecretStr\n    token: str | None = None\n    access_token: Optional[str]\n    expires_in: int = {d.of('123456789', 4)}\n",
    "code-go": lambda d: f"token := r.Header.Get(\"Authorization\")\npasswordHash, err := bcrypt.GenerateFromPassword([]byte(password), {d.of('89', 1)})\ncfg.APIKey = os.Getenv(\"API_KEY\")",
    "code-sql": lambda d: f"CREATE TABLE api_tokens (id serial, token text NOT NULL, password_digest varchar({d.of('123456789', 3)}), secret_key_id uuid);",
    "code-test": lambda d: f"def test_login(client):\n    client.login(username='anna', password='{d.pick(('secret', 'password', 'test', 'hunter2', 'wrong-password'))}')\n    assert Settings(api_key='{d.pick(('test-key', 'dummy', 'fake-token', 'not-a-secret'))}').ok",
    "code-regex": lambda d: "PATTERN = re.compile(r'ghp_[A-Za-z0-9]{36}|sk-[A-Za-z0-9]{32,}|AKIA[0-9A-Z]{16}|xox[bp]-\\d+')  # " + _words(d, 3),
    "token-counts": lambda d: json.dumps({"max_tokens": int(d.of("123456789", 4)), "total_tokens": int(d.of("123456789", 5)), "token_type": "bearer", "finish": "stop"}),
    "token-errors": lambda d: f"SyntaxError: Unexpected token '<', \"<!DOCTYPE \"... is not valid JSON at position {d.of('123456789', 3)}\nerror: invalid password for user \"app\"",
    "token-grammar": lambda d: f"tokenizer: BPE; special_tokens: {{'pad_token': '<pad>', 'eos_token': '</s>', 'bos_token': '<s>'}} vocab={d.of('123456789', 5)}",
    "k8s-ref": lambda d: f"env:\n- name: DB_PASSWORD\n  valueFrom:\n    secretKeyRef:\n      name: app-db-credentials-{d.of(_HEX, 5)}\n      key: password\nimagePullSecrets:\n- name: registry-pull-secret\n",
    "secret-arn": lambda d: f"secret_arn = arn:aws:secretsmanager:eu-west-1:{d.of('123456789', 12)}:secret:prod/app/db-{d.of(_B62, 6)}\npassword_secret: projects/{d.of('123456789', 9)}/secrets/db/versions/3",
    "secret-path": lambda d: f"ssl_key_file=/etc/ssl/private/server-{d.of(_HEX, 6)}.key\nVAULT_TOKEN_FILE=/run/secrets/vault-token\ntoken_url: https://auth.example.org/oauth2/token",
    "public-key": lambda d: f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{d.of(_B62, 43)} anna@laptop",
    "certificate": lambda d: "-----BEGIN CERTIFICATE-----\n" + textwrap.fill("MII" + d.b64(500), 64) + "\n-----END CERTIFICATE-----",
    "public-pem": lambda d: "-----BEGIN PUBLIC KEY-----\n" + textwrap.fill("MIIBIjANBgkqh" + d.b64(270), 64) + "\n-----END PUBLIC KEY-----",
    "ssh-fingerprint": lambda d: f"ED25519 key fingerprint is SHA256:{d.b64(32).rstrip('=')}.\nRSA MD5:{':'.join(d.of(_HEX, 2) for _ in range(16))}",
    "known-hosts": lambda d: f"|1|{d.b64(20)}|{d.b64(20)} ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBB{d.of(_B62, 86)}=",
    "docker-digest": lambda d: f"Digest: sha256:{d.of(_HEX, 64)}\nStatus: Downloaded newer image for app@sha256:{d.of(_HEX, 64)}\n{d.of(_HEX, 12)}: Pull complete",
    "etag": lambda d: f'HTTP/1.1 200 OK\nETag: "{d.of(_HEX, 32)}"\nX-Amz-Request-Id: {d.of(_B62.upper(), 16)}\nx-amz-id-2: {d.b64(57)}\nCF-RAY: {d.of(_HEX, 16)}-FRA',
    "s3-keys": lambda d: f"s3://logs/prod/{d.of(_HEX, 2)}/{d.of(_HEX, 32)}.parquet\nkey: data/{d.of(_HEX, 64)}/part-0001\ncache-key: linux-pip-{d.of(_HEX, 64)}",
    "cache-key": lambda d: f"Cache restored from key: node-modules-{d.of(_HEX, 64)}\nprimary_key={d.of('123456789', 8)} partition_key=tenant-{d.of('123456789', 4)} sort_key=created_at",
    "content-address": lambda d: f"QmYwAPJzv5CZsnA{d.of(_B62, 31)}\nbafybeigdyrzt5sfp7udm7hu76uh7y26nf3e{d.of('abcdefghijklmnopqrstuvwxyz234567', 23)}\n0x{d.of(_HEX, 40)}",
    "object-id": lambda d: json.dumps({"_id": {"$oid": d.of(_HEX, 24)}, "user": d.of(_B62, 21), "order": "ord_" + d.of(_B62, 24), "cus": "cus_" + d.of(_B62, 14)}),
    "ulid": lambda d: f"event 01J{d.of('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 23)} ksuid {d.of(_B62, 27)} nano {d.of(_B62 + '-_', 21)}",
    "model-hash": lambda d: f"loading meta-llama/Llama-3-8B revision={d.of(_HEX, 40)} system_fingerprint=fp_{d.of(_HEX, 10)} seed={d.of('123456789', 9)}",
    "hexdump": lambda d: "\n".join(f"{n:08x}  {' '.join(d.of(_HEX, 2) for _ in range(16))}  |{d.of(_B62, 16)}|" for n in range(0, 64, 16)),
    "bundle-js": lambda d: f"!function(e,t){{var n=t({d.of('123456789', 4)});e.exports={{key:n.a,token:n.t,secret:r[{d.of('123456789', 2)}]}}}}(window,(function(e){{return\"{d.of(_HEX, 20)}\"}}));app.{d.of(_HEX, 20)}.js",
    "csp-nonce": lambda d: f"Content-Security-Policy: script-src 'nonce-{d.b64(16)}' 'sha256-{d.b64(32)}'\n<script integrity=\"sha384-{d.b64(48)}\" crossorigin></script>",
    "test-vector": lambda d: f"assert hashlib.sha256(b'abc').hexdigest() == '{hashlib.sha256(d.raw(4)).hexdigest()}'\nexpected = bytes.fromhex('{d.of(_HEX, 64)}')",
    "password-prose": lambda d: f"The password must be at least {d.of('89', 1)} characters; the token expires after an hour. Password: required. Secret: the API key of the {_words(d, 3)}.",
    "password-form": lambda d: f'<input type="password" name="password" id="password-{d.of(_HEX, 6)}" autocomplete="current-password" placeholder="Password">',
    "email-url": lambda d: f"https://example.org:8443/path?q=anna@example.org&key=name&sort={_words(d, 1)}\nmailto:ops@example.org git@github.com:owner/repo.git",
    "reservation": lambda d: json.dumps({"reservation_id": d.of(_B62.upper(), 6), "payment_id": "credit_card_" + d.of("123456789", 7), "user_id": "mia_li_" + d.of("123456789", 4)}),
    "snake-names": lambda d: f"update_reservation_flights_and_passengers_with_credit_card_{d.of('123456789', 7)} test_that_the_secret_token_is_not_written_to_the_log_{d.of('123456789', 3)}",
    "long-path": lambda d: f"/usr/lib/python3/site-packages/{_words(d, 3).replace(' ', '_')}/__pycache__/token_{d.of(_HEX, 8)}.cpython-311.pyc:/tmp/pytest-{d.of(_HEX, 32)}/secret_test0",
}  # fmt: skip
