"""Lookup: what the next run, a person or a program asks.

Seeds are read from the heads in the store; the index serves search and lists only.
"""
