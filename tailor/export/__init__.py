"""What others get of a run: folders for Hugging Face and Ollama with a model card, and the way to the hub."""
