"""Supervised fine-tuning of multimodal LLMs: `finetune` trains, `TunedModel` finds a tuned model again or makes it."""
