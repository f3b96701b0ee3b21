"""What vLLM builds, and the part of it that one rank holds."""
