"""The tables of the index file. A file of another version is made anew: it is a cache."""

VERSION = 5

STATEMENTS = """
CREATE TABLE heads (key TEXT PRIMARY KEY, counter INTEGER NOT NULL, etag TEXT NOT NULL) STRICT;
CREATE TABLE memories (
  project TEXT NOT NULL, memory TEXT NOT NULL, counter INTEGER NOT NULL, revision INTEGER NOT NULL,
  manifest TEXT, held INTEGER NOT NULL, moved_at TEXT NOT NULL, PRIMARY KEY (project, memory)
) STRICT;
CREATE TABLE rollouts (
  id INTEGER PRIMARY KEY,
  project TEXT NOT NULL, memory TEXT NOT NULL, rollout TEXT NOT NULL, kind TEXT NOT NULL, original TEXT NOT NULL,
  subject TEXT, counter INTEGER NOT NULL, runs INTEGER NOT NULL, updated_at TEXT NOT NULL, moved_at TEXT NOT NULL,
  place TEXT AS (CASE updated_at WHEN 'unknown' THEN '' ELSE updated_at END) VIRTUAL,
  UNIQUE (project, memory, rollout)
) STRICT;
CREATE TABLE totals (
  project TEXT NOT NULL, memory TEXT NOT NULL, rollouts INTEGER NOT NULL, runs INTEGER NOT NULL,
  PRIMARY KEY (project, memory)
) STRICT;
CREATE TABLE runs (
  project TEXT NOT NULL, memory TEXT NOT NULL, rollout TEXT NOT NULL, run TEXT NOT NULL, attempt INTEGER NOT NULL,
  event TEXT NOT NULL, ended_at TEXT NOT NULL, superseded INTEGER NOT NULL, edit_of TEXT,
  place TEXT AS (CASE ended_at WHEN 'unknown' THEN '' ELSE ended_at END) VIRTUAL,
  PRIMARY KEY (project, memory, rollout, run, attempt)
) STRICT;
CREATE TABLE snapshots (
  project TEXT NOT NULL, rollout TEXT NOT NULL, agent TEXT NOT NULL, counter INTEGER NOT NULL,
  version INTEGER NOT NULL, ref TEXT, versions INTEGER NOT NULL, branches INTEGER NOT NULL, tags TEXT NOT NULL,
  moved_at TEXT NOT NULL, PRIMARY KEY (project, rollout, agent)
) STRICT;
CREATE INDEX rollouts_by_place ON rollouts (project, memory, place DESC, rollout);
CREATE INDEX runs_by_place ON runs (project, place, memory, rollout, run, attempt);
CREATE INDEX runs_by_event ON runs (event);
CREATE INDEX runs_by_run ON runs (run);
CREATE INDEX runs_by_rollout ON runs (rollout);
CREATE INDEX snapshots_by_time ON snapshots (project, moved_at DESC, rollout, agent);
CREATE INDEX snapshots_tagged ON snapshots (project, moved_at DESC, rollout, agent) WHERE tags <> '';
CREATE VIRTUAL TABLE summaries USING fts5(text, tokenize = 'unicode61');
"""
"""Every list has an index in its own order, so that a page costs the same however many rows there are; `totals` is
kept with the rows for the same reason. A rollout's text in `summaries` has the rollout's `id` as its rowid: FTS5 finds
a row by that alone, and by any column of it only by reading the whole table."""
