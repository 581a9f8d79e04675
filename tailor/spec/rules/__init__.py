"""Rules between keys: one file per subject."""
