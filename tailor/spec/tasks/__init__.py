"""Evaluation tasks: one class each, with what the rules and the evaluation must know of it."""
