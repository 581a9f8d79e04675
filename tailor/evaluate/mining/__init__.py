"""Hard negatives for rows of queries, from a corpus: which passages may be negatives, and which of them are chosen."""
