"""Logging, progress, locks, caches and tables of text."""
