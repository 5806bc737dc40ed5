"""Tests of `recbole-mm serve`."""
