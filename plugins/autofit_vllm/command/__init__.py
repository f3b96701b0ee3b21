"""The command line of `vllm serve`, and its parser."""
