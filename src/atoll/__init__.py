"""Atoll runs pod sandboxes on Linux."""

__version__ = "0.1.0"
