"""A cluster under faults, and the judge that knows nothing of it but what was sent.

`plan` says what is sent and what must come of it, `driver` sends it and writes the ledger, `harness` runs the
processes and breaks them, `reading` reads what is there afterwards without our code, `judge` compares.
"""
