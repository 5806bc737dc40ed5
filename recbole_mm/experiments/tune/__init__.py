"""Searches for settings: trials on Ray Tune, judged on validation alone, and one test of the best of them."""
