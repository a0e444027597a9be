"""Memory, pure: values in, values out; no store, no clock, no network. See docs/DESIGN.md, "Memory".

    record line ──redact──▶ line ──digest──▶ digest ─┐
                                      digest ... ─────┴─build/extend──▶ summary (one per rollout)
    summary ──operations──▶ [Operation] ──apply──▶ Notes ──parts──▶ parts ──compose──▶ a seed's files

Everything here is a function of the *set* of runs that it was given, never of the order or the batches in
which they came: that is what makes replays, crashes and two workers end in the same memory.
"""
