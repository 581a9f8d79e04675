"""Specs of recipes, evaluation files and cluster files: their keys, how a file is read, and the rules between keys.
Imports pydantic and yaml only.
"""
