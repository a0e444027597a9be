"""Lookup: what the next run, a person or a program asks. Reads heads from the store; the index only for search and lists."""
