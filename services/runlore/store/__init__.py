"""The object store: a port, its adapters and (in `runlore.testing`) its fake."""
