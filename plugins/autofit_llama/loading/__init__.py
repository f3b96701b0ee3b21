"""What llama.cpp's loader refuses: keys of another type, vocabularies, tensors that are missing or odd."""
