"""Runlore: every finished agent run becomes memory, and seeds the next run's workspace.

The map of the whole pipeline is ``runlore.pipeline``; the words are defined in docs/DESIGN.md.
This package imports nothing at its top, so that ``runlore --help`` starts fast.
"""

__version__ = "0.2.0"
