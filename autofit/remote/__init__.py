"""Files that are not on this machine: pieces of them over HTTP, and what is kept of them."""
