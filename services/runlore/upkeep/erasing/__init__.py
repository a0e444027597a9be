"""Erasing: what `runlore forget` does, a file for each place in which something of a run lies (docs/ERASURE.md)."""
