"""Texts by an LLM behind an OpenAI-compatible server: python examples/llm_server.py URL MODEL [SENTENCE_ENCODER]

With Ollama:  ollama pull qwen2.5vl:7b && OLLAMA_CONTEXT_LENGTH=8192 ollama serve
              python examples/llm_server.py http://localhost:11434/v1 qwen2.5vl:7b
The sentence encoder is a folder or an id on the Hugging Face hub. Texts are kept, and never paid for twice.
"""

from __future__ import annotations

import sys

import shop

import recbole_mm
from recbole_mm.runs.plan import plan


def main(url: str, model: str, encoder: str = "sentence-transformers/all-MiniLM-L6-v2") -> None:
    """Tell what it costs, have profiles and descriptions written, and rank by them; then the same without an LLM."""
    name = shop.dataset()
    settings = {"sentence_encoder": encoder, "item_domain": "product of a shop", "epochs": 30}
    server = {"text_backend": "openai", "text_url": url, "text_model": model, "text_concurrency": 2}
    for stage in plan("MLLMRec", name, config_dict={**settings, **server}).stages:
        print(f"{stage.name}: {stage.to_do} to do")
    written = recbole_mm.run("MLLMRec", name, config_dict={**settings, **server})
    template = recbole_mm.run("MLLMRec", name, config_dict={**settings, "text_backend": "template"})
    for who, outcome in {model: written, "no LLM": template}.items():
        print(f"{who:14} Recall@20 {outcome.test_result['recall@20']:.4f}")
    print(recbole_mm.recommend(written, 3, users=["c1"], reasons=True).to_string(index=False))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:4])
