"""Prepared tokens: the store, its rows, and the global batch of every step."""
