"""The files of a model against the modules that its configuration describes."""
