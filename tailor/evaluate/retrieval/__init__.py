"""Retrieval by embeddings: collections, rankings and their metrics."""
