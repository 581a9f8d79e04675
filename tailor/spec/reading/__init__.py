"""Read a file into plain values with positions, validate them, and publish the schema and the reference."""
