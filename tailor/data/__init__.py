"""Prepared data: the token store, the rows of a batch, and the global batch of each step."""
