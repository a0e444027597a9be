"""Settings: read once at start from `RUNLORE_*`; nothing else in the code reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HOME_DEFAULT = "~/.runlore"


class Settings(BaseSettings):
    """Every setting, with its unit in its name. Each is also documented in docs/SETTINGS.md."""

    model_config = SettingsConfigDict(
        env_prefix="RUNLORE_", env_ignore_empty=True, frozen=True, extra="ignore"
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
        5.0, gt=0, le=3600, description="How often marks and heads are listed, in case a doorbell was lost."
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
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="Least level of what is logged, on stderr."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How a log line looks; `auto` is text on a terminal, else JSON."
    )

    @property
    def root(self) -> Path:
        return self.home.expanduser().absolute()
