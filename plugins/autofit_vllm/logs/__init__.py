"""What vLLM prints while it starts and runs, and what can be told from it."""
