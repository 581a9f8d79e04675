"""The specs of evaluation tasks: one class per task with its keys and traits."""
