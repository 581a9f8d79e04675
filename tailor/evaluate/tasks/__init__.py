"""How each task of an evaluation is evaluated: one file per task."""
