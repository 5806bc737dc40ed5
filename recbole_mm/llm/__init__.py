"""A Hugging Face multimodal LLM: encode items, and (later rooms) generate text and score an answer."""
