"""What a model may need besides interactions: vectors, profiles, preferences, fine-tuned LLMs."""
