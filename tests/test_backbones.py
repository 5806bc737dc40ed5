"""Every family of multimodal LLMs, end to end: fine-tuned, encoding items, reading histories, ranking."""

from __future__ import annotations

import numpy as np
import pytest

import recbole_mm
from recbole_mm.llm.families import FAMILIES


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_tuned_encodes_reads_and_ranks(toy_settings, family, tuning):
    name = f"tiny-{family}".replace("_", "-")
    tuned = {"mirm_tuning": tuning, "mirm_examples": 2, "mirm_history": 2, "mirm_batch_tokens": 2000}
    settings = {**toy_settings, **tuned, "mllm": name, "epochs": 1}
    outcome = recbole_mm.run("Molar", "toy", config_dict=settings)
    dataset = outcome.dataset
    assert dataset.inputs.mllm.model.config.model_type == family
    vectors = dataset.inputs.item_vectors[1:]
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) > len(vectors) // 2, "items must not look alike"
    assert outcome.model.dueg.text_stack.hidden_size == dataset.inputs.mllm.hidden_size
    assert 0 < outcome.test_result["recall@10"] <= 1
    again = recbole_mm.load(outcome.run_dir)
    assert again.dataset.inputs.mllm.identity == dataset.inputs.mllm.identity
    untuned = recbole_mm.run("Molar", "toy", config_dict={**settings, "mirm_tuning": "none"})
    assert not np.allclose(untuned.dataset.inputs.item_vectors[1:], vectors)
