"""Go templates, the language of Ollama's Modelfile: parsed and executed as Ollama does, and made from chat templates."""
