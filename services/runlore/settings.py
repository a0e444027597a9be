"""Settings: read once at start from `RUNLORE_*`; nothing else in the code reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

HOME_DEFAULT = "~/.runlore"


class Settings(BaseSettings):
    """Every setting, with its unit in its name. Each is also documented in docs/SETTINGS.md."""

    model_config = SettingsConfigDict(
        env_prefix="RUNLORE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        # Older versions of pydantic warn of names that begin with `model_`.
        protected_namespaces=("settings_",),
    )

    home: Path = Field(
        Path(HOME_DEFAULT), description="Folder that holds all state of the embedded pipeline."
    )
    fsync: bool = Field(
        True,
        description="Whether a write is on the disk before it counts. Off, a power cut may lose acknowledged runs.",
    )
    poll_records_max: int = Field(
        100, ge=1, le=5000, description="Messages that one poll takes, and one mark names."
    )
    lanes: int = Field(8, ge=1, le=64, description="Rollouts that one stage works at the same time.")
    poll_timeout_seconds: float = Field(1.0, gt=0, le=60, description="How long a poll waits for messages.")
    marks_interval_seconds: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="How often marks and heads are listed, in case a doorbell was lost. Marks of over 50 projects: a "
        "tenth of a second for each.",
    )
    heads_interval_seconds_max: float = Field(
        900.0,
        gt=0,
        le=86_400,
        description="Longest time from one LIST of all heads by the index to the next: 3 seconds for each 1,000 heads.",
    )
    retry_seconds_max: float = Field(
        30.0, gt=0, le=3600, description="Longest wait between two tries of a stage."
    )
    drain_seconds_max: float = Field(
        25.0, gt=0, le=3600, description="How long SIGTERM waits for work in hand."
    )
    workspace_folders: tuple[Path, ...] = Field(
        (),
        description="Folders (a JSON list) below which a run's event may name its workspace. None: none may.",
    )
    redact_library: bool = Field(
        True,
        description="Whether workers redact by the detector library too, where `runlore[redact]` is installed.",
    )
    # --- beside an agent (`runlore.agents`) ---
    url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Lookup service that `runlore.agents` asks; empty: the home on this machine.",
    )
    key: SecretStr = Field(SecretStr(""), description="API key for the lookup service.")
    # --- past one machine ---
    bus: Literal["sqlite", "kafka"] = Field(
        "sqlite", description="What carries events: a log in the home, or Kafka."
    )
    store: Literal["directory", "s3"] = Field(
        "directory", description="What keeps objects: a folder in the home, or S3."
    )
    s3_bucket: str = Field("", description="Bucket of the store.")
    s3_prefix: str = Field(
        "", pattern=r"^([A-Za-z0-9._-]+/)*$", description="Prefix of every key in the bucket, ending in `/`."
    )
    s3_endpoint: str = Field("", description="URL of an S3 server that is not AWS.")
    s3_region: str = Field("", description="Region; empty: what boto3 finds.")
    s3_access_key_id: SecretStr = Field(
        SecretStr(""), description="Access key; empty: boto3's own chain (role, profile, environment)."
    )
    s3_secret_access_key: SecretStr = Field(SecretStr(""), description="Secret of the access key.")
    s3_encryption: Literal["bucket", "s3", "kms"] = Field(
        "bucket", description="Encryption asked for on a write: the bucket's default, SSE-S3 or SSE-KMS."
    )
    s3_kms_key: str = Field("", description="KMS key id or ARN for `kms`; empty: the account's default key.")
    s3_timeout_seconds: float = Field(
        20.0, gt=0, le=300, description="How long one request may wait for its connection or for bytes."
    )
    s3_connections_max: int = Field(32, ge=1, le=512, description="Requests at the same time.")
    kafka_servers: str = Field("", description="Brokers to begin with, `host:port`, comma-separated.")
    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="Protocol of the brokers' listener."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How to log in, with `sasl_*`."
    )
    kafka_username: str = Field("", description="User, with `sasl_*`.")
    kafka_password: SecretStr = Field(SecretStr(""), description="Password, with `sasl_*`.")
    kafka_ca_file: str = Field("", description="CA certificates (PEM) for TLS; empty: the system's.")
    kafka_cert_file: str = Field("", description="Client certificate (PEM) for mutual TLS.")
    kafka_key_file: str = Field("", description="Key (PEM) of the client certificate.")
    kafka_compression: Literal["none", "gzip", "lz4", "zstd"] = Field(
        "zstd", description="Compression of what is produced."
    )
    kafka_topic_prefix: str = Field(
        "runlore.", pattern=r"^[A-Za-z0-9._-]*$", description="Prefix of every topic's name."
    )
    kafka_group_prefix: str = Field(
        "runlore.", pattern=r"^[A-Za-z0-9._-]*$", description="Prefix of every consumer group's name."
    )
    kafka_instance: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Name of this worker for static membership (a StatefulSet's pod name); empty: none.",
    )
    kafka_session_seconds: float = Field(
        30.0, ge=6, le=300, description="How long a silent worker keeps its partitions."
    )
    rebalance_seconds_max: float = Field(
        10.0, gt=0, le=120, description="How long a rebalance waits for work in hand before it is given up."
    )
    queue_records_max: int = Field(
        1000, ge=1, le=100_000, description="Messages of a stage in memory; what is above it is parked."
    )
    queue_bytes_max: int = Field(
        64 * 1024 * 1024, ge=1024 * 1024, description="Bytes of messages of a stage in memory."
    )
    parked_records_max: int = Field(
        50_000,
        ge=0,
        le=1_000_000,
        description="Messages of a stage read past and left on the bus, so that no project waits behind another's; "
        "over it, partitions are paused. 0: none is parked.",
    )
    # --- the lookup service ---
    http_host: str = Field(
        "127.0.0.1", description="Address of `runlore serve`; any but this machine's own needs `http_keys`."
    )
    http_port: int = Field(7077, ge=0, le=65535, description="Port of `runlore serve`; 0: any free one.")
    http_connections_max: int = Field(
        4096,
        ge=1,
        le=100_000,
        description="Open connections; one more is answered 503. Fewer where the process may open fewer files.",
    )
    http_stall_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="How long a client may take for 64 KiB of what it sends, or 1 MiB of what it gets; then it is cut.",
    )
    http_keys: bool = Field(
        False, description="Whether each request needs a key of its project (`runlore keys create`)."
    )
    http_requests_max: int = Field(
        256, ge=1, le=10_000, description="Requests at the same time; one more is answered 503."
    )
    audit_seeds: Literal["auto", "before", "beside", "off"] = Field(
        "auto",
        description="Whether a seed waits for its entry in the log of seeds (`before`), has it within a second "
        "(`beside`), or has none (`off`). `auto`: `before` where keys are needed, else `off`.",
    )
    public_url: str = Field(
        "",
        pattern=r"^(https?://[^\s/?#]+/?)?$",
        description="Where people reach `runlore serve` with a browser: what links in mails begin with; empty: none.",
    )
    # --- mail ---
    smtp_host: str = Field(
        "", description="Mail server of invitations and spend alerts; empty: nothing is mailed."
    )
    smtp_port: int = Field(587, ge=1, le=65535, description="Its port.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is made safe: STARTTLS, TLS from the start (465), or not."
    )
    smtp_username: str = Field("", description="User to log in as; empty: none.")
    smtp_password: SecretStr = Field(SecretStr(""), description="Password of that user.")
    smtp_from: str = Field("", description="Address that mail comes from.")
    smtp_ca_file: str = Field(
        "", description="CA certificates (PEM) for the mail server; empty: the system's."
    )
    smtp_timeout_seconds: float = Field(
        15.0, gt=0, le=120, description="How long sending one mail may take, with all of its tries."
    )
    # --- a model ---
    model_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Base URL of an endpoint that speaks OpenAI's API; empty: OpenAI's own.",
    )
    model_key: SecretStr = Field(SecretStr(""), description="API key for that endpoint.")
    model_api: Literal["auto", "responses", "chat"] = Field(
        "auto", description="Which of its APIs is used; `auto`: responses, and chat where there is none."
    )
    models_file: Path | None = Field(
        None, description="TOML file that says which model does what, and prices (docs/MODELS.md)."
    )
    model_timeout_seconds: float = Field(
        300.0, gt=0, le=3600, description="How long one whole answer may take."
    )
    model_requests_max: int = Field(
        4, ge=1, le=256, description="Requests to the endpoint at the same time, of one process."
    )
    model_tries_max: int = Field(
        3, ge=1, le=10, description="Tries of one request where the endpoint is full or stumbles."
    )
    # --- being watched ---
    health_port: int = Field(
        0, ge=0, le=65535, description="Port of /livez, /readyz, /status and /metrics of a worker; 0: none."
    )
    health_address: str = Field(
        "127.0.0.1",
        description="Address of that port; `0.0.0.0` in a container, whose probes come from outside.",
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Base URL of an OpenTelemetry collector (OTLP over HTTP) for traces; empty: none.",
    )
    otlp_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of traces begun here that are kept; a producer's own choice goes first.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="Least level of what is logged, on stderr."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How a log line looks; `auto` is text on a terminal, else JSON."
    )

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if self.store == "s3" and not self.s3_bucket:
            raise ValueError("RUNLORE_STORE=s3 needs RUNLORE_S3_BUCKET")
        if self.bus == "kafka" and not self.kafka_servers:
            raise ValueError("RUNLORE_BUS=kafka needs RUNLORE_KAFKA_SERVERS")
        if bool(self.s3_access_key_id.get_secret_value()) != bool(
            self.s3_secret_access_key.get_secret_value()
        ):
            raise ValueError("RUNLORE_S3_ACCESS_KEY_ID and RUNLORE_S3_SECRET_ACCESS_KEY go together")
        self._check_mail()
        return self

    def _check_mail(self) -> None:
        has_password = bool(self.smtp_password.get_secret_value())
        if self.smtp_host and not self.smtp_from:
            raise ValueError("RUNLORE_SMTP_HOST needs RUNLORE_SMTP_FROM")
        if bool(self.smtp_username) != has_password:
            raise ValueError("RUNLORE_SMTP_USERNAME and RUNLORE_SMTP_PASSWORD go together")
        if has_password and self.smtp_security == "none":
            raise ValueError(
                "RUNLORE_SMTP_PASSWORD is not sent in the clear: RUNLORE_SMTP_SECURITY=starttls or tls"
            )

    @property
    def seeds_are_audited(self) -> Literal["before", "beside", "off"]:
        """What `audit_seeds` means here. Without keys there is nobody to name, but this machine's user."""
        if self.audit_seeds == "auto":
            return "before" if self.http_keys else "off"
        return self.audit_seeds

    @property
    def has_model(self) -> bool:
        """Whether a model writes summaries, beside the rules."""
        return bool(self.model_url or self.model_key.get_secret_value())

    @property
    def root(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def cache_dir(self) -> Path:
        """Stat caches, and what is known of the folders that were saved and restored. May be deleted."""
        return self.root / "cache"
