"""Releases of vLLM: which one a plan is for, and what it had that the newest known one has not."""
