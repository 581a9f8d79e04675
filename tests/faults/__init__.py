"""Runs that are killed or stopped and resume. These tests run the whole command, so the folder mirrors no package."""
