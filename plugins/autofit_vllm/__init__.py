"""The vLLM backend of autofit."""
