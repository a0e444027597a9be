"""What Runlore is tested with, shipped so that others can test their side with it too.

`stores` and `buses` are the ports in memory, held to the same contract as the real adapters (tests/contract).
`world` and `exhaust` run production code through every crash and every interleaving; `invariants` says
what must hold afterwards, and is what `runlore verify` runs on a real home.
"""
