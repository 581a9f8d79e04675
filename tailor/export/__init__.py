"""Exports runs: folders for Hugging Face, sentence-transformers, llama.cpp and Ollama with a model card, and uploads to the hub."""
