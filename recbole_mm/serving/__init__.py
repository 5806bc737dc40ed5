"""Serves a finished run over HTTP: recommendations, similar items, items with their pictures, and a page."""
