"""The worker: the loops that feed the stages, commit offsets, retry, pause and drain."""
