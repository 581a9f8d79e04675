"""The routed experts of mixture-of-experts models: where their weights are, LoRA on them, quantization, and checks."""
