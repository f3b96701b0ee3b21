"""What llama.cpp prints while it runs, and what can be told from it without the model file."""
