"""The rules between keys: one file per subject, and one per method and evaluation task that has rules."""
