"""Texts written by an LLM: what is asked for, who writes it, and the store that keeps it."""
