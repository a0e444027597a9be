"""The bus over Kafka, through aiokafka."""

from __future__ import annotations

import ssl
from typing import Any

from runlore import errors
from runlore.settings import Settings

REQUEST_SECONDS_MAX = 10.0
"""How long one request to a broker may take, before it is tried again elsewhere."""


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and admin client all take.

    Servers, client id, security, login, and how long a request may take. Raises `errors.Blocked` where a file
    of the TLS settings can not be used.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [one.strip() for one in settings.kafka_servers.split(",") if one.strip()],
        "client_id": settings.kafka_instance or "runlore",
        "request_timeout_ms": int(REQUEST_SECONDS_MAX * 1000),
        "security_protocol": settings.kafka_security.upper(),
    }
    if settings.kafka_security in ("ssl", "sasl_ssl"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security.startswith("sasl_"):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": settings.kafka_password.get_secret_value(),
        }
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """TLS that checks the broker's certificate and its name, always."""
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file or None)
        if settings.kafka_cert_file:
            context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise errors.Blocked(
            f"a TLS file for Kafka can not be used: {exc}",
            hint="check RUNLORE_KAFKA_CA_FILE, RUNLORE_KAFKA_CERT_FILE and RUNLORE_KAFKA_KEY_FILE",
        ) from exc
    return context
