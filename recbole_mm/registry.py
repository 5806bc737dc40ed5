"""Model names to model classes: ours, RecBole's, and yours.

    >>> find_model("sas-rec").name
    'SASRec'
    >>> register_model("MyModel", "my_package.my_module:MyModel", paper="Me et al. 2026")   # doctest: +SKIP

Nothing is imported until a model is loaded: a model of RecBole's is found by reading its source file.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from recbole_mm.errors import ConfigError
from recbole_mm.utils.spelling import nearest

OWN_MODELS: tuple[tuple[str, str, str, str], ...] = (
    # name, module and class, type, paper; a name of RecBole's replaces its class
    ("Pop", "recbole_mm.models.pop:Pop", "general", "Most chosen items; RecBole's class with its counting mended."),
    (
        "Molar",
        "recbole_mm.models.molar:Molar",
        "sequential",
        "Molar: Multimodal LLMs with Collaborative Filtering Alignment for Enhanced Sequential Recommendation, "
        "arXiv 2412.18176.",
    ),
    (
        "MLLMRec",
        "recbole_mm.models.mllmrec:MLLMRec",
        "general",
        "MLLMRec: Exploring the Potential of Multimodal Large Language Models in Recommender Systems, "
        "arXiv 2508.15304.",
    ),
    (
        "MLLMMSR",
        "recbole_mm.models.mllmmsr:MLLMMSR",
        "sequential",
        "Harnessing Multimodal Large Language Models for Multimodal Sequential Recommendation, arXiv 2408.09698.",
    ),
    (
        "TALLRec",
        "recbole_mm.models.tallrec:TALLRec",
        "sequential",
        "TALLRec: An Effective and Efficient Tuning Framework to Align Large Language Model with Recommendation, "
        "arXiv 2305.00447.",
    ),
    (
        "DuoRec",
        "recbole_mm.models.duorec:DuoRec",
        "sequential",
        "Ruihong Qiu et al. Contrastive Learning for Representation Degeneration Problem in Sequential Recommendation, "
        "WSDM 2022.",
    ),
    (
        "eSASRec",
        "recbole_mm.models.esasrec:eSASRec",
        "sequential",
        "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion, RecSys 2025, arXiv 2508.06450.",
    ),
    (
        "HLLM",
        "recbole_mm.models.hllm:HLLM",
        "sequential",
        "HLLM: Enhancing Sequential Recommendations via Hierarchical Large Language Models for Item and User Modeling, "
        "arXiv 2409.12740.",
    ),
    (
        "CoLLM",
        "recbole_mm.models.collm:CoLLM",
        "sequential",
        "CoLLM: Integrating Collaborative Embeddings into Large Language Models for Recommendation, arXiv 2310.19488.",
    ),
    (
        "SASRecContent",
        "recbole_mm.models.sasrec_content:SASRecContent",
        "sequential",
        "SASRec over projected text and image features, a baseline of Molar, arXiv 2412.18176.",
    ),
    (
        "TIGER",
        "recbole_mm.models.tiger:TIGER",
        "sequential",
        "Shashank Rajput et al. Recommender Systems with Generative Retrieval, NeurIPS 2023, arXiv 2305.05065.",
    ),
    (
        "VBPR",
        "recbole_mm.models.vbpr:VBPR",
        "general",
        "Ruining He and Julian McAuley. VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback, AAAI 2016, "
        "arXiv 1510.01784.",
    ),
    (
        "LATTICE",
        "recbole_mm.models.lattice:LATTICE",
        "general",
        "Jinghao Zhang et al. Mining Latent Structures for Multimedia Recommendation, ACM MM 2021, arXiv 2104.09036.",
    ),
    (
        "FREEDOM",
        "recbole_mm.models.freedom:FREEDOM",
        "general",
        "Xin Zhou and Zhiqi Shen. A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal "
        "Recommendation, ACM MM 2023, arXiv 2211.06924.",
    ),
    (
        "BM3",
        "recbole_mm.models.bm3:BM3",
        "general",
        "Xin Zhou et al. Bootstrap Latent Representations for Multi-modal Recommendation, WWW 2023, arXiv 2207.05969.",
    ),
    (
        "MGCN",
        "recbole_mm.models.mgcn:MGCN",
        "general",
        "Penghang Yu et al. Multi-View Graph Convolutional Network for Multimedia Recommendation, ACM MM 2023, "
        "arXiv 2308.03588.",
    ),
    (
        "LGMRec",
        "recbole_mm.models.lgmrec:LGMRec",
        "general",
        "Zhiqiang Guo et al. LGMRec: Local and Global Graph Learning for Multimodal Recommendation, AAAI 2024, "
        "arXiv 2312.16400.",
    ),
    (
        "SMORE",
        "recbole_mm.models.smore:SMORE",
        "general",
        "Rongqing Kenneth Ong and Andy W. H. Khong. Spectrum-based Modality Representation Fusion Graph Convolutional "
        "Network for Multimodal Recommendation, WSDM 2025, arXiv 2412.14978.",
    ),
    (
        "MMGCN",
        "recbole_mm.models.mmgcn:MMGCN",
        "general",
        "Yinwei Wei et al. MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of "
        "Micro-video, ACM Multimedia 2019.",
    ),
)

_RECBOLE_FOLDERS = {
    "general_recommender": "general",
    "sequential_recommender": "sequential",
    "context_aware_recommender": "context-aware",
    "knowledge_aware_recommender": "knowledge",
    "exlib_recommender": "external library",
}
MODEL_TYPES = tuple(_RECBOLE_FOLDERS.values())


@dataclass(frozen=True)
class ModelEntry:
    """A model by name; its class is imported by `load`.

    Attributes:
        name: the class's name, as printed and as in `properties/model/<name>.yaml`.
        type: one of `MODEL_TYPES`.
        origin: the package it comes from, "recbole_mm" or "RecBole" or the name of another one.
        paper: its reference, empty where none is known.
        target: "module:Class".
    """

    name: str
    type: str
    origin: str
    paper: str
    target: str

    def load(self) -> builtins.type:
        """Import the model's class.

        Raises:
            ConfigError: the package it needs is not installed, or the module has no such class.
        """
        module_name, _, class_name = self.target.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            package = (error.name or module_name).split(".")[0]
            if package in ("recbole", "recbole_mm"):
                raise
            raise ConfigError(f"model {self.name} needs the package {package!r}, which is not installed") from error
        if not isinstance(getattr(module, class_name, None), type):
            raise ConfigError(f"model {self.name}: {module_name} has no class {class_name!r}")
        return getattr(module, class_name)


_registered: dict[str, ModelEntry] = {}


def register_model(
    name: str, target: str, paper: str = "", type: str = "sequential", replaces_recbole: bool = False
) -> ModelEntry:
    """Make a model known by name, so that it runs, tunes and compares like any other.

    Args:
        name: what `--model` will accept, in any case and with or without hyphens and underscores.
        target: "module:Class"; imported only when the model is used.
        paper: its reference, for `recbole-mm models`.
        type: one of `MODEL_TYPES`, for `recbole-mm models`; how it is trained follows from the class.
        replaces_recbole: stand in for RecBole's model of that name on purpose.

    Raises:
        ConfigError: the name is taken, by RecBole or by an earlier registration, or `target` or `type` is malformed.
    """
    if not re.fullmatch(r"[\w.]+:\w+", target):
        raise ConfigError(f"model {name}: {target!r} is not of the form module:Class")
    if type not in MODEL_TYPES:
        raise ConfigError(f"model {name}: type {type!r} is not one of {', '.join(MODEL_TYPES)}")
    taken = _entry(_spelled(name))
    if taken is not None and not (replaces_recbole and taken.origin == "RecBole"):
        raise ConfigError(
            f"model {name} is already registered, as {taken.target} ({taken.origin}); choose another name"
        )
    entry = ModelEntry(name, type, target.split(".")[0].split(":")[0], paper, target)
    _registered[_spelled(name)] = entry
    return entry


def find_model(name: str) -> ModelEntry:
    """The model of that name; case, hyphens and underscores do not matter.

    Raises:
        ConfigError: there is none; the message names the nearest ones.
    """
    entry = _entry(_spelled(name))
    if entry is None:
        known = _known()
        near = [known[key].name for key in nearest(_spelled(name), known)]
        hint = f"did you mean {' or '.join(near)}?" if near else "none is spelled like it;"
        raise ConfigError(f"unknown model {name!r}: {hint} `recbole-mm models` lists them all")
    return entry


def list_models() -> list[ModelEntry]:
    """Every model: those that are not RecBole's first, then by type and name."""
    order = {name: place for place, name in enumerate(MODEL_TYPES)}
    return sorted(
        _known().values(), key=lambda entry: (entry.origin == "RecBole", order[entry.type], entry.name.lower())
    )


def _entry(spelled: str) -> ModelEntry | None:
    return _registered.get(spelled) or _recbole_model(spelled)


def _known() -> dict[str, ModelEntry]:
    theirs = {spelled: _recbole_model(spelled) for spelled in _recbole_files()}
    return {**{spelled: entry for spelled, entry in theirs.items() if entry is not None}, **_registered}


def _spelled(name: str) -> str:
    """A name as it is compared: `SAS-Rec`, `sas_rec` and `SASRec` are one."""
    return re.sub(r"[-_\s]", "", name).lower()


@functools.cache
def _recbole_files() -> dict[str, Path]:
    """`recbole/model/*_recommender/*.py` by spelled name."""
    spec = find_spec("recbole")
    roots = map(Path, (spec.submodule_search_locations or []) if spec is not None else [])
    folders = [root / "model" / folder for root in roots for folder in _RECBOLE_FOLDERS]
    return {_spelled(path.stem): path for folder in folders for path in sorted(folder.glob("*.py"))}


@functools.cache
def _recbole_model(spelled: str) -> ModelEntry | None:
    """RecBole's model of that name: the class that is named as its file, apart from case; None if there is none."""
    path = _recbole_files().get(spelled)
    if path is None:
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == path.stem:
            paper = _reference(ast.get_docstring(tree)) or _reference(ast.get_docstring(node))
            target = f"recbole.model.{path.parent.name}.{path.stem}:{node.name}"
            return ModelEntry(node.name, _RECBOLE_FOLDERS[path.parent.name], "RecBole", paper, target)
    return None


def _reference(docstring: str | None) -> str:
    """The first paragraph under `Reference:` in one line; empty if there is none."""
    found = re.search(
        r"^[ \t]*References?:[ \t]*\n(.*?)(?=\n[ \t]*\n|\n[ \t]*Reference|\Z)", docstring or "", re.S | re.M
    )
    return " ".join(found.group(1).split()) if found else ""


for _name, _target, _type, _paper in OWN_MODELS:
    _registered[_spelled(_name)] = ModelEntry(_name, _type, "recbole_mm", _paper, _target)
