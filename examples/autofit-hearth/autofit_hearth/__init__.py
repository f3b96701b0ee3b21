"""Hearth, an invented engine, for autofit."""
