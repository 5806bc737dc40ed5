"""A model whose score is a setting, and which writes down what is done with it; tests of searches look at that."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from recbole.model.general_recommender import BPR

from recbole_mm.config.schema import Setting


class Scripted(BPR):
    """Ranks by how often an item was chosen: `ranks: best` the right way round, `middle` in no order, `worst` reversed.

    A line of the file `tally` is a batch of training or of an evaluation, which has one: what, process, learning rate.
    `fails` names what goes wrong after the first validation: nothing, once, always, or killed.
    """

    settings = (Setting("ranks"), Setting("tally"), Setting("fails"))

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.ranks, self.fails, self.tally = config["ranks"], config["fails"], Path(config["tally"])
        self.rate = config["learning_rate"]
        counts = torch.zeros(dataset.item_num)
        for item in dataset.inter_feat["item_id"].tolist():
            counts[item] += 1
        shuffled = torch.randperm(dataset.item_num, generator=torch.Generator().manual_seed(0)).float()
        self.places = {"best": counts, "middle": shuffled, "worst": -counts}[self.ranks]
        self.validated = 0

    def calculate_loss(self, interaction):
        if self.validated:
            self._fail()
        self._write("trained")
        return super().calculate_loss(interaction)

    def full_sort_predict(self, interaction):
        self._write("evaluated")
        self.validated += 1
        return self.places.repeat(len(interaction)).view(-1)

    def _fail(self):
        once = self.tally.with_name(f"failed-{self.rate}")
        if self.fails == "always" or (self.fails == "once" and not once.exists()):
            once.touch()
            raise RuntimeError(f"this setting\ncannot be trained {self.rate}")
        if self.fails == "killed":
            os.kill(os.getpid(), 9)

    def _write(self, what: str) -> None:
        with self.tally.open("a", encoding="utf-8") as file:
            file.write(f"{what} {os.getpid()} {self.rate}\n")
