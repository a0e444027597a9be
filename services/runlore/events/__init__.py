"""The event contract: what producers publish and what Runlore emits. The source of `schemas/`."""
