"""From YAML text to values with positions, and back: source, overrides, explanations, schemas, the reference."""
