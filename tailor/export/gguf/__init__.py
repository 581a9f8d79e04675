"""GGUF files for llama.cpp: converted and quantized by llama.cpp itself, then compared with the model in transformers."""
