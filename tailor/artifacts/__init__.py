"""Artifacts of runs (adapters, models, checkpoints): load, merge, average and verify them."""
