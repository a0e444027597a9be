"""The lookup service over HTTP (docs/HTTP.md): seeds, memory, snapshots, and events from producers without Kafka."""
