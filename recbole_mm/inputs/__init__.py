"""What a model may ask for beside interactions: vectors, profiles, preferences, fine-tuned LLMs."""
