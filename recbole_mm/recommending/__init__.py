"""Recommendations of a finished run: for users of its data, for new users given as histories, and of similar items."""
