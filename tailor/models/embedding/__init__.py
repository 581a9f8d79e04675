"""Text embeddings: pooling, bidirectional attention, layout of a text, settings saved beside the weights."""
