"""Molar's MIRM, fine-tuned before it encodes items (section 3.3): objectives, prompts, and the tuned model's folder."""
