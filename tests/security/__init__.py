"""Received folders and files in the way: nothing runs, leaks or is deleted that should not."""
