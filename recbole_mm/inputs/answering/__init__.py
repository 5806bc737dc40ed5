"""LLMs that are fine-tuned to answer Yes or No: prompts, examples and the tuned model's folder."""
