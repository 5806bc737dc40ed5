"""A dataset's items: raw content, inputs and `.item` columns, without what `missing_rate` hides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_mm.config.resolved import Config
from recbole_mm.data.content import ItemContent
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.feature_fields import FeatureFieldsMixin
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.data.missing import Hidden, MissingContents
from recbole_mm.data.splits import TEST, TRAIN
from recbole_mm.errors import ConfigError


class HidingMixin(Dataset):
    """Blanks the columns of `.item` that RecBole's models read, for the items whose text is hidden."""

    config: Config
    item_feat: Any
    whole_item_feat: Any = None
    """`item_feat` with the columns of all items."""

    @cached_property
    def missing(self) -> MissingContents:
        """The settings of what is hidden."""
        return MissingContents.of(self.config)

    def hidden(self, phase: int) -> Hidden:
        """What is hidden in TRAIN, to which the validation belongs, or in TEST."""
        return self.missing.hidden(self.item_tokens()[1:], phase)

    def item_tokens(self) -> Sequence[str]:
        """The dataset's own item ids, index = RecBole's id; index 0 is `[PAD]`."""
        return self.field2id_token[self.iid_field]

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        self.whole_item_feat = self.item_feat
        self.item_feat = self._columns(TRAIN)

    def _columns(self, phase: int) -> Interaction | None:
        """The item table of a phase; columns of items without text hold padding, 0."""
        table, without = self.whole_item_feat, self.hidden(phase).get("text", frozenset())
        if table is None or "text" not in self.missing.modalities:
            return table
        gone = torch.tensor([token in without for token in self.item_tokens()])[table[self.iid_field]]
        blanked = {name: values.clone() for name, values in table.interaction.items() if name in self.item_feat}
        for name in blanked.keys() - {self.iid_field}:
            blanked[name][gone] = 0
        return Interaction(blanked)


class ContentMixin(FeatureFieldsMixin, HidingMixin):
    """Items' texts, images and inputs. Until `show_as_tested`, all of them are what the training sees."""

    inputs: ModelInputs = ModelInputs()
    """What the model receives in addition to interactions; set once, before `build`."""
    _inputs_of_training: ModelInputs | None = None

    @property
    def training_inputs(self) -> ModelInputs:
        """The `inputs` of the training, by whose mean and spread a trained model standardises vectors."""
        return self.inputs if self._inputs_of_training is None else self._inputs_of_training

    @cached_property
    def content_source(self) -> ContentSource:
        """Raw text and images by item token, of all items."""
        return ContentSource.from_config(self.config)

    @cached_property
    def content(self) -> ItemContent:
        """Raw text and images aligned to RecBole's item ids; `content[0]` is padding."""
        return ItemContent(self.content_source.hiding(self.hidden(TRAIN)), self.item_tokens())

    @cached_property
    def content_at_test(self) -> ItemContent:
        """`content` as it is when the test, or anybody, asks for scores."""
        if not self.missing.changes:
            return self.content
        return ItemContent(self.content_source.hiding(self.hidden(TEST)), self.item_tokens())

    def show_as_tested(self, inputs: ModelInputs) -> None:
        """From now on content, inputs and columns are those of the test.

        Args:
            inputs: what the model receives then.
        """
        self._inputs_of_training, self.inputs = self.training_inputs, inputs
        self.__dict__["content"] = self.content_at_test
        self.item_feat = self._columns(TEST)
        self.set_feature_fields({name: torch.from_numpy(self.item_feature(name)) for name in self.feature_fields})

    def item_feature(self, name: str) -> np.ndarray:
        """Feature `name` of `item_features`: float32 (item_num, d), row = RecBole's item id, row 0 zeros.

        Raises:
            ConfigError: there is no such feature.
        """
        return self._feature(self.inputs, name)

    def training_feature(self, name: str) -> np.ndarray:
        """The same of `training_inputs`."""
        return self._feature(self.training_inputs, name)

    def _feature(self, inputs: ModelInputs, name: str) -> np.ndarray:
        if name not in inputs.item_features:
            known = sorted(self.config["item_features"] or ()) or "none"
            raise ConfigError(
                f"no item feature {name!r}; item_features has {known}: give it an entry there, or do not name it in "
                "content_features or item_sources"
            )
        return inputs.item_features[name]
