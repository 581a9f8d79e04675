"""Runs that are killed, stopped and starved, and go on. This folder mirrors no package: it tests the whole command."""
