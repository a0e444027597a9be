"""Upkeep: what is checked and cleaned beside the pipeline."""
