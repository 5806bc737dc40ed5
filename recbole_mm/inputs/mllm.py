"""The LLM of a run: the needs for it, fine-tuned where settings ask for that, and for what it answers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from transformers.utils import logging as hub_logging

from recbole_mm import __version__
from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.inputs.answering.tuning import SftSettings, tuned_answerer
from recbole_mm.inputs.context import Context, Need, PlannedStage, artifact_dir
from recbole_mm.inputs.mirm.tuning import MirmSettings, tuned_mirm
from recbole_mm.llm.gguf import SMOLLM2, convert_gguf, gguf_folder, is_gguf, smollm2_file
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pretrained import Pretrained, find_llm
from recbole_mm.llm.tiny import build_tiny

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)
_warned: WeakSet[MultimodalDataset] = WeakSet()
"""Datasets of runs whose log says that their LLM is untrained: it says so once, whoever asks for the LLM."""


class RunMLLM:
    """The multimodal LLM of `mllm`, fine-tuned first where `mirm_tuning` asks for it.

    `tiny`, or `tiny-<family>`, is built from the dataset's item texts if it does not exist yet.
    A GGUF file, and `smollm2` which is one, becomes a folder first.

    Args:
        context: the run's context.
    """

    def __init__(self, context: Context, /) -> None:
        self.context, self.config, self.dataset = context, context.config, context.dataset
        self.dtype: str = self.config["mllm_dtype"] or "auto"

    # --- to be computed with -----------------------------------------------------------------------------------------

    @cached_property
    def loaded(self) -> MLLM:
        """The model that the needs have in common, with its head if one of them asks for it."""
        return self.open(with_head="mllm_with_head" in self.context.needs)

    def open(self, with_head: bool = False, without_weights: bool = False) -> MLLM:
        """Loads the model.

        Args:
            with_head: load its language-model head too.
            without_weights: read no weights, for prompts and the model's identity.

        Raises:
            ModelLoadError: the model cannot be found or loaded.
            ConfigError: settings of the fine-tuning that are not accepted or do not fit together.
        """
        settings = MirmSettings.of(self.config)
        name, load = self.base()
        if settings.tuning != "none":
            name = str(tuned_mirm(self.config, self.dataset, settings, name, load, self.context.artifacts))
        return load(name, dtype=self.dtype, with_head=with_head, without_weights=without_weights)

    def base(self) -> tuple[str, Callable[..., MLLM]]:
        """Returns folder or hub id of `mllm`, a tiny one built or a GGUF file converted if need be; and what loads
        models on its device."""
        hub_logging.disable_progress_bar()  # transformers' bars for every file it writes
        name, family = self.config["mllm"], tiny_family(self.config["mllm"])
        if family is None:
            return local_llm(name, self.config), self._load
        folder = tiny_mllm(self.config, self.dataset, family)
        if self.dataset not in _warned:
            _warned.add(self.dataset)
            logger.warning(
                "mllm: %s is a real %s architecture, but UNTRAINED: its vectors know no more of images and words than "
                "random features do. Pass --mllm=Qwen/Qwen2-VL-2B-Instruct, a folder, or smollm2 for a trained one.",
                name,
                family,
            )
        return str(folder), self._load

    def require_attention(self) -> None:
        """Refuses a model whose tokens do not obey a mask, before anything is computed with it.

        Raises:
            ModelLoadError: see `MLLM.require_attention`, or the model cannot be found.
        """
        name, load = self.base()
        load(name, dtype=self.dtype, without_weights=True).require_attention()

    @property
    def _load(self) -> Callable[..., MLLM]:
        trust = bool(self.config["trust_remote_code"])
        shown = self.config["modalities"]
        pictures = shown is None or "image" in shown
        return partial(load_mllm, device=self.config["device"], trust_remote_code=trust, must_read_images=pictures)

    # --- to be planned with ------------------------------------------------------------------------------------------

    @cached_property
    def outline(self) -> MLLM | None:
        """The model without its weights, as far as it can be had without building or downloading one; else None, with a
        note."""
        source = self._source()
        if source is None:
            return None
        if source.is_adapter:  # its base model might have to be downloaded
            self.context.notes.append(
                f"{source.name} is an adapter: what was computed with it already shows when it is loaded"
            )
            return None
        return self._load(source, dtype=self.dtype, with_head=True, without_weights=True)

    def _source(self) -> Pretrained | None:
        notes, name, family = self.context.notes, self.config["mllm"], tiny_family(self.config["mllm"])
        if family is None:
            source = small_source(name, self.config, notes)
        else:
            folder, _ = tiny_folder(self.config, self.dataset, family)
            source = Pretrained(str(folder), folder) if folder.is_dir() else None
        settings = MirmSettings.of(self.config)
        if settings.tuning != "none":
            found = None
            if source is not None and source.commit is None:
                found = tuned_mirm(
                    *(self.config, self.dataset, settings, source.name, self._load, self.context.artifacts), make=False
                )
            if found is None:
                notes.append(
                    f"mirm_tuning: {settings.tuning}: the MLLM is fine-tuned first, which is not estimated here"
                )
            return None if found is None else Pretrained(str(found), found)
        if source is None and family is not None:
            notes.append(f"mllm: {name} is not built yet: tokens are estimated from characters")
        return source


def tiny_family(name: str) -> str | None:
    """Returns the `model_type` of the tiny MLLM of this name; None for a trained model.

    Example:
        >>> tiny_family("tiny"), tiny_family("tiny-internvl"), tiny_family("Qwen/Qwen2-VL-2B-Instruct")
        ('qwen2_vl', 'internvl', None)
    """
    if name == "tiny":
        return "qwen2_vl"
    if name.startswith("tiny-") and not Path(name).exists():
        return name.removeprefix("tiny-").replace("-", "_")
    return None


def tiny_mllm(config: Config, dataset: MultimodalDataset, family: str = "qwen2_vl") -> Path:
    """Returns the folder of the tiny MLLM for this dataset's texts and seed; it is built on first use."""
    folder, corpus = tiny_folder(config, dataset, family)
    return folder if folder.is_dir() else build_tiny(corpus, folder, seed=config["seed"], family=family)


def tiny_folder(config: Config, dataset: MultimodalDataset, family: str = "qwen2_vl") -> tuple[Path, list[str]]:
    """Returns where that folder is, built or not, and the texts that make its vocabulary."""
    corpus = [text for text in (dataset.content.text(i) for i in range(1, len(dataset.content))) if text]
    if not corpus:
        corpus = [str(token) for token in dataset.item_tokens()[1:]]
    corpus.sort()  # RecBole's numbers follow the order of all rows, those held out too
    digest = hashlib.sha256("\0".join([__version__, str(config["seed"]), *corpus]).encode()).hexdigest()[:16]
    name = "tiny" if family == "qwen2_vl" else f"tiny-{family}"
    return artifact_dir(config) / f"{name}-{digest}", corpus


def small_source(name: str, config: Config, notes: list[str]) -> Pretrained | None:
    """Returns a model's folder, or the configuration and tokenizer of one on the hub; None, with a note, without
    either."""
    try:
        name = local_llm(name, config, make=False)
        if is_gguf(name):
            notes.append(f"{name} is not converted yet: everything of it counts as to do")
            return None
        return find_llm(name, None, lambda *_: None, weights=False)
    except ModelLoadError:
        notes.append(f"{name} is neither here nor can it be asked about: everything of it counts as to do")
        return None


def is_gguf_model(name: str) -> bool:
    """Returns whether a model's name is that of a GGUF file, or of a model that comes as one."""
    return not Path(name).is_dir() and (is_gguf(name) or name == SMOLLM2)


def check_mllm(config: Config) -> None:
    """Refuses what `mllm` tells by its name alone, before anything is computed or converted.

    Raises:
        ConfigError: it is a GGUF file, which holds a text LLM, and images are to be read.
    """
    name, shown = str(config["mllm"]), config["modalities"]
    if is_gguf_model(name) and (shown is None or "image" in shown):
        raise ConfigError(
            f"mllm: {name}: a text LLM, which reads no images: set modalities: [text]; pictures come in through "
            "item_features and item_sources"
        )


def local_llm(name: str, config: Config, make: bool = True) -> str:
    """Returns the folder or hub id of a model; that of a GGUF file is where it is converted to.

    Args:
        name: as in `mllm` and `text_model`: folder, hub id, GGUF file, or `smollm2`.
        config: the run's configuration.
        make: convert it; False returns the name of a file that was not converted before.

    Raises:
        ModelLoadError: no such file, a damaged one, or a package that is not installed.
    """
    if name == SMOLLM2 and not Path(name).exists():
        name = str(smollm2_file())
    if not is_gguf(name) or Path(name).is_dir():
        return name
    if make:
        return str(convert_gguf(name, artifact_dir(config), config["show_progress"]))
    folder = gguf_folder(name, artifact_dir(config))
    return str(folder) if folder.is_dir() else name


# --- needs -----------------------------------------------------------------------------------------------------------


class LoadedMLLM(Need):
    """`mllm` and `mllm_with_head`: the run's multimodal LLM, loaded."""

    of_contents = False

    def check(self) -> None:
        """Refuses an LLM that cannot be run under a mask, as all who ask for it do."""
        self.context.share(RunMLLM).require_attention()

    def compute(self) -> dict[str, Any]:
        """Returns `mllm`."""
        return {"mllm": self.context.share(RunMLLM).loaded}


class AnsweringMLLM(Need):
    """`answering_mllm`: the multimodal LLM with its head, fine-tuned first to answer the prompts of the model's class
    unless `sft_tuning` is none (MLLM-MSR, section 3.3)."""

    reads_inputs = True
    of_contents = False

    def check(self) -> None:
        """Refuses settings of the fine-tuning, and an LLM that cannot be run under a mask."""
        SftSettings.of(self.context.config)
        self.context.share(RunMLLM).require_attention()

    def plan(self) -> list[PlannedStage]:
        """Returns no stage: fine-tuning is noted, not estimated."""
        if SftSettings.of(self.context.config).tuning != "none":
            self.context.notes.append("the MLLM is fine-tuned after that (sft_tuning), which is not estimated here")
        return []

    def compute(self) -> dict[str, Any]:
        """Returns `mllm`.

        Raises:
            ModelLoadError: the model cannot be found or loaded.
            ConfigError, DataError: settings that are not accepted or do not fit together, or nothing to learn from.
        """
        context, mllm = self.context, self.context.share(RunMLLM)
        settings = SftSettings.of(context.config)
        name, load = mllm.base()
        if settings.tuning != "none":
            assert context.hooks is not None
            prompt_of = partial(context.hooks.build_prompt, context.config, context.dataset)
            arguments = (context.config, context.dataset, settings, name, load, context.artifacts, prompt_of)
            name = str(tuned_answerer(*arguments))
        return {"mllm": load(name, dtype=mllm.dtype, with_head=True)}
