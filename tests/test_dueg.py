"""The DUEG's short way through known decoders: states and gradients of the decoder under the mask, for each kind."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, MistralConfig, MllamaTextConfig, Qwen2Config, Qwen2VLTextConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.mllama.modeling_mllama import MllamaTextModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Model

from recbole_mm.llm.model import TextStack
from recbole_mm.models.molar.dueg import TextStackDUEG
from recbole_mm.models.molar.prefix_attention import NAME, POSITION_ROWS, attend_to_prefixes

HIDDEN = 32
SIZES = {
    "vocab_size": 11,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
DECODERS = {
    "LlamaModel": (LlamaModel, LlamaConfig, {}),
    "MistralModel": (MistralModel, MistralConfig, {"sliding_window": 3}),
    "MllamaTextModel": (MllamaTextModel, MllamaTextConfig, {"cross_attention_layers": [1]}),
    "Qwen2Model": (Qwen2Model, Qwen2Config, {}),
    "Qwen2VLTextModel": (Qwen2VLTextModel, Qwen2VLTextConfig, MROPE),
    "Qwen2_5_VLTextModel": (Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig, MROPE),
    "Qwen3Model": (Qwen3Model, Qwen3Config, {"head_dim": 8}),
}


def make(kind, config_class, settings, **options) -> TextStackDUEG:
    torch.manual_seed(0)
    decoder = kind(config_class(**SIZES, **settings, **options)).float().eval()
    cross = getattr(decoder, "cross_attention_layers", [])
    stack = TextStack(decoder, [decoder.layers[index] for index in cross])
    for parameter in stack.parameters():  # norms and biases start at one and zero, which would hide what they do
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return TextStackDUEG(stack, HIDDEN).eval()


@pytest.fixture(params=sorted(POSITION_ROWS))
def dueg(request) -> TextStackDUEG:
    return make(*DECODERS[request.param], attn_implementation="sdpa")


def draw(batch, width, seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, HIDDEN, generator=generator, **options)


def masked(dueg, items, prefixes):
    """The decoder as it is, under the mask of `slot_layout`."""
    return dueg._run_masked(items, dueg.user_token.expand(len(items), prefixes.shape[1], -1), prefixes)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7)])
def test_all_prefixes_are_those_of_the_whole_decoder(dueg, shape):
    assert dueg.takes_apart
    prefixes = torch.arange(1, shape[1] + 1)[None]
    weights = draw(*shape, seed=2)
    items = draw(*shape).requires_grad_()
    inputs = {"items": items, **{name: value for name, value in dueg.named_parameters() if value.requires_grad}}
    found, expected = dueg.all_prefixes(items), masked(dueg, items, prefixes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad((states * weights).sum(), list(inputs.values()), allow_unused=True)
        for states in (found, expected)
    ]
    for name, one, other in zip(inputs, *gradients, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_whole_histories_are_those_of_the_whole_decoder(dueg):
    items, lengths = draw(4, 6), torch.tensor([6, 1, 3, 4])
    with torch.no_grad():
        found = dueg.whole(items, lengths)
        torch.testing.assert_close(found, masked(dueg, items, lengths[:, None])[:, 0], rtol=1e-4, atol=1e-5)
        for row, length in enumerate(lengths.tolist()):
            items[row, length:] = torch.nan if row % 2 else 1e6
        items = items.nan_to_num(nan=-1e6)
        torch.testing.assert_close(dueg.whole(items, lengths), found, rtol=1e-4, atol=1e-5)


def test_the_text_stack_still_takes_any_mask(dueg):
    items, causal = draw(2, 5), torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    with torch.no_grad():
        states = dueg.text_stack(items, causal, torch.arange(5).expand(2, -1)).last_hidden_state
        dueg.text_stack.decoder.set_attn_implementation("sdpa")
        expected = dueg.text_stack(items, causal, torch.arange(5).expand(2, -1)).last_hidden_state
    torch.testing.assert_close(states, expected)


@pytest.mark.parametrize(
    ("decoder", "attention"), [((SmolLM3Model, SmolLM3Config, {}), "sdpa"), (DECODERS["LlamaModel"], "eager")]
)
def test_other_decoders_and_attentions_run_under_the_mask(decoder, attention):
    dueg = make(*decoder, attn_implementation=attention)
    assert not dueg.takes_apart
    assert dueg.text_stack.decoder.config._attn_implementation == attention
    items = draw(2, 4)
    with torch.no_grad():
        together = dueg.all_prefixes(items)
        torch.testing.assert_close(together, masked(dueg, items, torch.arange(1, 5)[None]))
        torch.testing.assert_close(together[:, 2], dueg.whole(items[:, :3], torch.tensor([3, 3])), rtol=1e-4, atol=1e-5)


def test_only_the_copy_attends_in_this_way():
    decoder = LlamaModel(LlamaConfig(**SIZES, attn_implementation="sdpa"))
    dueg = TextStackDUEG(TextStack(decoder), HIDDEN)
    assert dueg.text_stack.decoder.config._attn_implementation == NAME
    assert decoder.config._attn_implementation == "sdpa"


def test_bfloat16_stays_bfloat16():
    dueg = make(*DECODERS["Qwen2VLTextModel"], attn_implementation="sdpa").bfloat16()
    items = draw(3, 9).bfloat16()
    with torch.no_grad():
        found, expected = dueg.all_prefixes(items), masked(dueg, items, torch.arange(1, 10)[None])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.1, atol=0.1)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_checkpointed_layers_give_the_same_gradients():
    dueg = make(*DECODERS["LlamaModel"], attn_implementation="sdpa").train()
    items = draw(2, 5)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            dueg.text_stack.decoder.gradient_checkpointing_enable()
        dueg.zero_grad()
        dueg.all_prefixes(items).square().sum().backward()
        gradients.append([value.grad for value in dueg.parameters() if value.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_of_the_weights_keeps_their_mean():
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).double()
    items = tuple(torch.randn(2, 1, 1, 3, 8, generator=torch.Generator().manual_seed(1)).double())
    slots = (query, key[:, :1], value[:, :1])
    unseen = torch.arange(3) > torch.arange(4)[:, None]
    expected = attend_to_prefixes(slots, items, unseen, 0.3, dropout=0.0)
    torch.manual_seed(2)
    drawn = torch.stack([attend_to_prefixes(slots, items, unseen, 0.3, dropout=0.4) for _ in range(4000)])
    assert drawn.std(0).min() > 0.01
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0, atol=0.1)


def test_slots_attend_as_torch_does_under_a_mask():
    query = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    key, value = torch.randn(2, 2, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    keys, values = torch.randn(2, 2, 2, 5, 8, generator=torch.Generator().manual_seed(2))
    seen = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(3)) > 0.4
    found = attend_to_prefixes((query, key, value), (keys, values), ~seen.unsqueeze(1), 0.2, dropout=0.0)
    mask = torch.cat([seen, torch.eye(3, dtype=torch.bool).expand(2, 1, 3, 3)], dim=-1)
    expected = F.scaled_dot_product_attention(
        query, torch.cat([keys, key], 2), torch.cat([values, value], 2), mask, scale=0.2, enable_gqa=True
    )
    torch.testing.assert_close(found, expected)
