"""Experiments: a table of models or variants, run over seeds, tested against each other, written for a paper."""
