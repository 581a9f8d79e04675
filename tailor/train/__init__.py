"""The training loop for all methods: steps, strategies, checkpoints and the final artifact."""
