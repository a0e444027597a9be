"""The openai-agents side: record a run, seed the next one, and never be in its way (docs/AGENTS.md)."""
