"""`tailor doctor`: what this machine has and what a recipe needs, as findings with hints. Changes nothing."""
