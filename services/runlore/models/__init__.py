"""Models that write memory: the port to them, one adapter, and what is kept of their answers and their cost."""
