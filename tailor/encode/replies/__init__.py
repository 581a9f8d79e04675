"""What answers say: text, reasoning and tool calls, in the forms of model families."""
