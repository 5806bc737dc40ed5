"""Texts written by an LLM: requests, backends, and the stage that keeps texts in the store."""
