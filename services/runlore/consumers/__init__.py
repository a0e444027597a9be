"""The stages: thin shells that read a topic or marks, and put one effect in the store.

What they do is in `commit/` and `memory/`; what they must keep is the order (docs/DESIGN.md, "Write order").
They await the ports and `runlore.clock` only, so a simulation can drive them one store call at a time; how
work is spread over threads and tasks is given to them as a `Runtime`.
"""
