"""Items that came after training, shown beside the trained ones by what their content says.

They are given as a dataset is: an `.item` file with the columns that the run reads of its own items, and images where
the run's settings look for them, in the folder of the file. Vectors are computed as those of the run's items were,
through the same artifact store, so that an item is encoded once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from recbole_mm.data.content import ItemContent
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.data.item_text import clean_text
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.inputs.context import Context, open_store
from recbole_mm.inputs.features import ItemFeatures
from recbole_mm.inputs.item_vectors import MLLMVectors
from recbole_mm.models.hooks import hooks_of
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.utils.paths import expanded

VIEWS = {"item_vectors": None, "item_text_vectors": "text"}
"""Inputs of the MLLM's vectors -> the modality that they are of; None for those of the run."""


def with_new_items(recommender: Recommender, path: str | os.PathLike[str]) -> Recommender:
    """Return a recommender that ranks new items beside the run's own.

    Args:
        recommender: of a run whose model knows items by their content.
        path: the `.item` file of the new items.

    Raises:
        ConfigError: the model knows items by their ids, or by something that cannot be computed of new ones.
        DataError: the file is missing or malformed, lacks a column that the run's texts are made of, holds no item, or
            one that the run has.
    """
    hooks, config = hooks_of(type(recommender.model)), recommender.config
    if "new_item_vectors" not in vars(hooks):
        raise _ids_alone(config["model"])
    content = _read(recommender, Path(expanded(os.fspath(path))))
    needs = tuple(name for name in hooks.requirements(config) if name in VIEWS)
    given: dict[str, Any] = {}
    with open_store(config) as store:
        # What an LLM is made or tuned of is told by the data before it is split.
        context = Context(config, create_dataset(config), store, hooks, needs)
        for name in needs:
            seen = content if VIEWS[name] is None else content.only(str(VIEWS[name]))
            given[name] = context.share(MLLMVectors).compute(seen)
        if "prepared_items" in hooks.requirements(config):
            given["prepared_items"] = context.share(MLLMVectors).prepared(content)
        given["item_features"] = context.share(ItemFeatures).of(content)
    content.report_problems()
    try:
        with torch.no_grad():
            new = ModelInputs(model=config["model"], **given)
            vectors = hooks.new_item_vectors(recommender.model, new, recommender.dataset.training_inputs)
    except NotImplementedError:
        raise _ids_alone(config["model"], " with these settings") from None
    return recommender.with_new_items(content.tokens[1:], _titles(recommender, content), vectors)


def _read(recommender: Recommender, path: Path) -> ItemContent:
    if path.suffix != ".item" or not path.is_file():
        raise DataError(f"{path}: no such file; new items are given as an .item file, as the run's own are")
    source = recommender.dataset.content_source.of_other_items(recommender.config, path)
    assert source.table is not None
    tokens = source.table.ids
    if not tokens:
        raise DataError(f"{path}: no item below the header")
    if known := next((token for token in tokens if recommender.knows_item(token)), None):
        raise DataError(f"{path}: item {known!r} is one of the run's own; leave it out")
    return ItemContent(source, ["[PAD]", *tokens])


def _titles(recommender: Recommender, content: ItemContent) -> list[str]:
    field = recommender.title_field
    return [clean_text(content.fields(place).get(field or "", "")) for place in range(1, len(content))]


def _ids_alone(model: str, why: str = "") -> ConfigError:
    return ConfigError(
        f"{model}{why} knows items by their ids, or trained something for each, so it cannot rank new ones; Molar, "
        "SASRecContent and HLLM with a frozen item LLM can"
    )
