"""The tables of other trainers: what becomes of each of their arguments.

They are the source of `tailor import`, of the hints for their keys in a recipe, and of docs/moving-over.md.
"""
