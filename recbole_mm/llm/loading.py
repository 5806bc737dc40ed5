"""Loading an LLM, with or without eyes, from the Hugging Face hub or a folder. Never sets an environment variable."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.adapter import Adapter, merge_adapter, read_adapter
from recbole_mm.llm.families import FAMILIES, family_class, is_multimodal, is_text_llm
from recbole_mm.llm.family import Family
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pretrained import LLM_HINT, Pretrained, find_llm, first_line, load_errors, open_pretrained
from recbole_mm.llm.prompts import CUR_ITEM
from recbole_mm.utils.files import parse_json

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONVERTED = {
    "internvl_chat": "take its `-hf` counterpart, such as OpenGVLab/InternVL3-2B-hf",
    "multi_modality": "take deepseek-community/deepseek-vl-1.3b-chat",
}
"""Types of checkpoints that come with code of their own, and where the same weights are in transformers' layout."""


def load_mllm(
    name_or_path: str | Path | Pretrained,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    revision: str | None = None,
    attention: str = "sdpa",
    with_head: bool = False,
    load_in_4bit: bool = False,
    without_weights: bool = False,
    must_read_images: bool = False,
) -> MLLM:
    """Load a multimodal LLM of a supported family or a text LLM, or a PEFT adapter merged into the one it belongs to.

    Args:
        name_or_path: a hub id such as `Qwen/Qwen2-VL-2B-Instruct`, or a folder in the Hugging Face layout. A folder
            with an `adapter_config.json` stands for its base model with the adapter merged in; a tokenizer in it takes
            the place of the base model's. Or its files, already found.
        device: where the model goes.
        dtype: of the weights: float32, bfloat16, float16, or auto (bfloat16 on a GPU that has it, else float32).
        trust_remote_code: allow a tokenizer that ships its own Python code.
        revision: branch, tag or commit of a hub model.
        attention: transformers' attention implementation, such as sdpa or eager.
        with_head: load the model with its language-model head, to generate, answer or fine-tune.
        load_in_4bit: hold the linear layers in 4 bits (NF4), to fine-tune a large model through an adapter. Needs
            bitsandbytes.
        without_weights: read no weights: what lays out prompts (tokenizer, family) is that of the loaded model, the
            model itself cannot run. An adapter's is its base model.
        must_read_images: refuse a text LLM.

    Raises:
        ModelLoadError: no such folder or hub model, an unreachable hub, another family, damaged or missing files, an
            adapter that does not fit, or 4 bits where they cannot be had.
        ConfigError: a text LLM where one is wanted that reads images.
    """
    given = name_or_path if isinstance(name_or_path, Pretrained) else None
    name = str(name_or_path) if given is None else given.name
    target = torch.device(device)
    own_dtype = weights_dtype(dtype, target)
    source = given or find_llm(name, revision, supported_family, trust_remote_code)
    adapter = read_adapter(source) if source.is_adapter else None
    base = source if adapter is None else _locate_base(adapter, trust_remote_code)
    # Before anything of it is used: a file that is damaged is found here.
    parts = [base.identity, *(["nf4"] if load_in_4bit else []), *([] if adapter is None else [source.identity])]
    family_type = supported_family(base.name, base.folder)
    if must_read_images and not family_type.reads_images:
        raise ConfigError(
            f"{name}: a text LLM, which reads no images: set modalities: [text]; pictures come in through "
            "item_features and item_sources"
        )
    headed = family_type.generation_class
    loads_head = with_head or (adapter is not None and adapter.needs_head(headed.base_model_prefix))
    model_class = headed if loads_head else family_type.model_class
    settings: dict[str, Any] = {"dtype": own_dtype, "attn_implementation": attention}
    if attention == "sdpa" and not model_class._supports_sdpa:
        settings["attn_implementation"] = "eager"  # what some text LLMs have alone
    if load_in_4bit:
        settings |= {"quantization_config": _four_bits(name, own_dtype, adapter), "device_map": {"": target}}
    model = _outline(base, model_class, own_dtype) if without_weights else _read_model(base, model_class, settings)
    with _tokenizer_errors(name):
        tokenizer = open_pretrained(AutoTokenizer.from_pretrained, name, base.folder, trust_remote_code)
    with load_errors(name):
        image_processor = None
        if family_type.reads_images:
            image_processor = open_pretrained(family_type.image_processor_class.from_pretrained, name, base.folder)
        if adapter is not None and adapter.has_tokenizer:
            words = len(tokenizer)
            config = open_pretrained(AutoConfig.from_pretrained, name, base.folder)
            tokenizer = open_pretrained(
                AutoTokenizer.from_pretrained,
                name,
                adapter.source.folder,
                trust_remote_code,
                config=config,  # decides how some tokenizers are read
            )
            _make_room(model, words, len(tokenizer))
    require_words(name, tokenizer)
    with load_errors(name):
        cur_item_id = add_cur_item(model, tokenizer, name)
    if adapter is not None and not without_weights:
        model = _with_adapter(adapter, family_type, model)
    if loads_head and not with_head:
        model = family_type.base(model)
    with load_errors(name):
        family = family_type(model.config, image_processor, tokenizer)
    family.speed_up(model)
    return MLLM(
        name=name,
        identity="+".join(parts),
        model=(model if load_in_4bit or without_weights else model.to(target)).eval(),
        tokenizer=tokenizer,
        image_processor=image_processor,
        family=family,
        cur_item_id=cur_item_id,
        target=target,
        folder=base.folder,
    )


@contextmanager
def _tokenizer_errors(name: str) -> Iterator[None]:
    """As `load_errors`, for a tokenizer; transformers' words for one that is not there go on over several lines."""
    with load_errors(name, "its tokenizer"):
        try:
            yield
        except ValueError as error:
            if "backend tokenizer" not in str(error):
                raise
            raise ModelLoadError(
                f"{name}: there is no tokenizer in its folder; copy the model's tokenizer.json there, too"
            ) from error


def require_words(name: str, tokenizer: Any) -> None:
    """Refuse the empty tokenizer that transformers makes where a folder has none: every text would be nothing.

    Raises:
        ModelLoadError: it is one.
    """
    if not tokenizer.encode("word", add_special_tokens=False):
        raise ModelLoadError(f"{name}: there are no words in its tokenizer; copy the model's tokenizer.json there, too")


def _read_model(base: Pretrained, model_class: Any, settings: dict[str, Any]) -> PreTrainedModel:
    """The model's weights, every tensor accounted for."""
    # Its random starts, where it makes any, must not advance the caller's generator.
    with load_errors(base.name), torch.random.fork_rng(devices=[]), _without_report():
        options = {"use_safetensors": True, "output_loading_info": True, **settings}
        model, report = open_pretrained(model_class.from_pretrained, base.name, base.folder, **options)
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ModelLoadError(
            f"{base.name}: the weights lack {len(lacking)} tensors that the model needs, e.g. {lacking[0]}"
        )
    return model


def _outline(base: Pretrained, model_class: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose tensors have shapes and a dtype alone."""
    with load_errors(base.name), torch.random.fork_rng(devices=[]), torch.device("meta"):
        return model_class(open_pretrained(AutoConfig.from_pretrained, base.name, base.folder)).to(dtype)


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers' table of tensors out of the log: that a head is left out is meant, the rest is checked."""
    speaker = logging.getLogger("transformers.modeling_utils")

    def wanted(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    speaker.addFilter(wanted)
    try:
        yield
    finally:
        speaker.removeFilter(wanted)


def _make_room(model: PreTrainedModel, words: int, wanted: int) -> None:
    """Embed the words that an adapter's tokenizer has beyond the `words` of its base model's."""
    if wanted > model.get_input_embeddings().num_embeddings:
        resize_vocabulary(model, wanted)
    set_to_mean(model, range(words, wanted), words)


def _with_adapter(adapter: Adapter, family_type: type[Family], model: PreTrainedModel) -> PreTrainedModel:
    """The model with an adapter merged in. Its embeddings get the size that the adapter was trained with."""
    rows = adapter.embedding_rows
    if rows is not None and rows != model.get_input_embeddings().num_embeddings:
        resize_vocabulary(model, rows)
    if adapter.needs_head(family_type.generation_class.base_model_prefix) or isinstance(model, family_type.model_class):
        return merge_adapter(adapter, model)
    inner = next(name for name, part in model.named_children() if isinstance(part, family_type.model_class))
    setattr(model, inner, merge_adapter(adapter, getattr(model, inner)))
    return model


def _locate_base(adapter: Adapter, with_code: bool) -> Pretrained:
    """The files of an adapter's base model."""
    try:
        base = find_llm(adapter.base, adapter.base_revision, supported_family, with_code)
    except ModelLoadError as error:
        raise ModelLoadError(f"{adapter.name}: the adapter's base model is missing: {error}") from error
    if base.is_adapter:
        raise ModelLoadError(
            f"{adapter.name}: its base model {adapter.base} is an adapter itself; merge that one first"
        )
    return base


def _four_bits(name: str, dtype: torch.dtype, adapter: Adapter | None) -> BitsAndBytesConfig:
    """How the linear layers are quantized: NF4, their scales too, computing in `dtype`."""
    if adapter is not None:
        raise ModelLoadError(f"{name}: an adapter can only be merged into full weights, not into 4 bits")
    if find_spec("bitsandbytes") is None:
        raise ModelLoadError(f"{name}: 4 bits need bitsandbytes, which is not installed: pip install bitsandbytes")
    try:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    except (ImportError, ValueError) as error:
        raise ModelLoadError(f"{name}: bitsandbytes cannot be used: {first_line(error)}") from error


def supported_family(name: str, folder: Path) -> type[Family]:
    """The family of a model by its config.json.

    Raises:
        ModelLoadError: another family, or no config.json that can be read.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(f"{name}: no model there, its folder holds no config.json; {LLM_HINT}") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name}: its config.json cannot be read: {first_line(error)}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or not (is_multimodal(kind) or is_text_llm(kind)):
        supported = ", ".join(sorted(FAMILIES))
        hint = f"; {CONVERTED[kind]}" if isinstance(kind, str) and kind in CONVERTED else ""
        raise ModelLoadError(
            f"{name}: a model of type {kind!r}; supported multimodal LLMs are of type {supported}, or another that "
            f"transformers reads as image-text-to-text, text LLMs of any that AutoModelForCausalLM reads{hint}"
        )
    if kind not in FAMILIES and (config.get("use_bidirectional_attention") or config.get("is_causal") is False):
        raise ModelLoadError(f"{name}: its words look at those after them, as an encoder's do: it is no causal LM")
    return family_class(kind)


def weights_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name; `auto` is bfloat16 on a GPU that has it, else float32.

    Raises:
        ModelLoadError: there is none of that name.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name!r}: choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device is a GPU that computes in bfloat16. CPUs do too, but most of them slowly."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


# --- new words: in memory only, the checkpoint on disk stays as it is -------------------------------------------------


def add_cur_item(model: PreTrainedModel, tokenizer: Any, name: str) -> int:
    """Make `[Cur_Item]` a special token of a loaded model.

    A checkpoint that knows the token already (one that was fine-tuned with it) is left alone. Otherwise the token's
    embedding is the mean of all words' embeddings: the same on every machine, and no direction preferred.

    Args:
        model: with a head or without.
        tokenizer: of the model.
        name: of the model, for errors.

    Returns:
        The token's id.

    Raises:
        ModelLoadError: the tokenizer has no fast version.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(f"{name}: its tokenizer has no fast version (tokenizer.json), which recbole_mm needs")
    words, known = len(tokenizer), CUR_ITEM in tokenizer.get_vocab()
    tokenizer.add_special_tokens({"extra_special_tokens": [CUR_ITEM]}, replace_extra_special_tokens=False)
    token = int(tokenizer.convert_tokens_to_ids(CUR_ITEM))
    rows = model.get_input_embeddings().num_embeddings
    if known and token < rows:
        return token
    if token >= rows:
        resize_vocabulary(model, token + 1)
    set_to_mean(model, [token], min(words, rows))
    return token


def resize_vocabulary(model: PreTrainedModel, rows: int) -> None:
    """Give the word embeddings, and the head where there is one, this many rows."""
    with torch.random.fork_rng(devices=[]):  # what is drawn for new rows is overwritten
        family_class(model.config.model_type).resize(model, rows)


@torch.no_grad()
def set_to_mean(model: PreTrainedModel, tokens: Iterable[int], words: int) -> None:
    """Set the rows of new tokens to the mean over the first `words` rows, in the embeddings and in an untied head."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    for layer in {id(layer.weight): layer for layer in layers if layer is not None}.values():
        mean = layer.weight[:words].double().mean(dim=0).to(layer.weight.dtype)
        for token in tokens:
            if token < len(layer.weight):  # a head may know fewer words than the embeddings
                layer.weight[token] = mean
