"""Equal and similar rows: hashes, MinHash signatures and n-grams of words; groups of duplicates; overlap with benchmarks."""
