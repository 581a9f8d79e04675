"""The run folder: its lock, status, metrics log, origin and environment, and the report page."""
