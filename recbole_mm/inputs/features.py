"""The features of the setting `item_features` that a model reads: vectors of files, of pretrained encoders and of the
multimodal LLM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from recbole_mm.artifacts.store import artifact_key
from recbole_mm.artifacts.vectors import vectors_through_store
from recbole_mm.data.content import ItemContent
from recbole_mm.data.features import MLLM, SUMMARY, FeatureSpec
from recbole_mm.inputs.context import Need, PlannedStage
from recbole_mm.inputs.item_vectors import MLLMVectors
from recbole_mm.inputs.mllm import RunMLLM
from recbole_mm.inputs.needs import read_features
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.vectors import SentenceVectors, local_encoder
from recbole_mm.llm.encoders import possible_parameters
from recbole_mm.llm.features import feature_inputs, load_features


class ItemFeatures(Need):
    """`item_features`: one matrix of vectors for each entry of the setting."""

    def plan(self) -> list[PlannedStage]:
        """Returns a stage for each feature that an encoder makes; those of a file need none."""
        specs = read_features(self.context.config)
        parsed = [FeatureSpec.parse(name, settings) for name, settings in specs.items()]
        return [self._plan(spec) for spec in parsed if spec.file is None]

    def _plan(self, spec: FeatureSpec) -> PlannedStage:
        name, content = f"feature {spec.name}", self.context.content
        if spec.encoder == MLLM:
            return self.context.share(MLLMVectors).plan(content, name)
        known = self.context.share(ItemTexts).known if spec.on == SUMMARY else None
        hashes = set(feature_inputs(spec, content, None if known is None else known.written).hashes)
        unknown = 0 if known is None else len(known.unwritten)
        found = local_encoder(str(spec.encoder), spec.revision)
        if found is None:
            return PlannedStage(name, str(spec.encoder), None, len(hashes) + unknown, at_most=True)
        trust = bool(self.context.config["trust_remote_code"])
        possible = [
            [artifact_key(spec.stage, found.identity, "", parameters, each) for each in hashes]
            for parameters in possible_parameters(spec, found, trust)
        ]
        done, to_do = self.context.count(max(possible, key=lambda keys: len(self.context.store.contains(keys))))
        return PlannedStage(name, str(spec.encoder), done, to_do + unknown, at_most=bool(unknown))

    def compute(self) -> dict[str, Any]:
        """Returns `item_features`."""
        texts = self.context.share(ItemTexts).texts if "item_texts" in self.context.needs else None
        return {"item_features": self.of(self.context.content, texts)}

    def of(self, content: ItemContent, texts: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        """Returns the features of items, float32 (n_items, d) each. Each encoder is let go before the next one is
        loaded.

        Args:
            content: the items; files of vectors lie in their dataset's folder.
            texts: of the items, for features of summaries.
        """
        context, config = self.context, self.context.config
        context.release(SentenceVectors)
        show, executor = config["show_progress"], context.executor
        compute = partial(vectors_through_store, context.store, show_progress=show, executor=executor)
        trust, specs = bool(config["trust_remote_code"]), read_features(config)

        def with_mllm(items: ItemContent) -> np.ndarray:
            try:
                return context.share(MLLMVectors).compute(items)
            finally:
                context.release(RunMLLM)

        return load_features(specs, content, compute, config["device"], with_mllm, texts, trust)
