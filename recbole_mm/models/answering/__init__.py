"""Models that answer Yes or No: what they are asked, what they are fine-tuned on, and the ranking by their answers."""
