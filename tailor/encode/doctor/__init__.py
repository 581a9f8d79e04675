"""The data doctor: checks of the rows of a recipe, with counts, row numbers, examples, and the recipe lines that fix them."""
