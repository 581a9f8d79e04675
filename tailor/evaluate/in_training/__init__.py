"""Evaluations during training: exact match of generated answers, and retrieval."""
