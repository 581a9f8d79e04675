"""Hard negatives for rows of queries, from a corpus: which passages may be negatives, and which of them are chosen."""

BM25, RANDOM = "bm25", "random"
"""Names of the retrievers that are no model."""
