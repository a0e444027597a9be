"""The bus: a port, its adapters and (in `runlore.testing`) its fake."""
