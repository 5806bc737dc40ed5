"""One run: its folder and identity, what it needs of other runs, training and test."""
