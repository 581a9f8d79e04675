"""Measurements on the model while it trains."""
