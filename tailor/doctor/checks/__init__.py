"""The checks of `tailor doctor`, one subject per file."""
