"""Evaluation: tasks, the batches that they compute, and their figures with confidence intervals."""
