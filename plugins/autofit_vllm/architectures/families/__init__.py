"""Builders of model families: what vLLM's class of each architecture creates."""
