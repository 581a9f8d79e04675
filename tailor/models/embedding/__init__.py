"""Text embeddings: bidirectional attention, pooling, projection, and the settings that are saved with the weights."""
