"""Training, validation and test data of a run: who is ranked, against which positives, with which items masked.

General and sequential models get the same held-out items, the same masked histories and the same candidates, whatever
loader their training needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from recbole.utils import EvaluatorType, ModelType

from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.data.loaders import FullSequenceLoader
from recbole_mm.errors import DataError
from recbole_mm.evaluation.ranking import CSR, EvalUsers, RankingData, TrainCounts
from recbole_mm.first_stage import has_first_stage
from recbole_mm.layers import reads_labels

logger = logging.getLogger(__name__)


@dataclass
class Phases:
    """What `split` gives: a training loader and two evaluation sets, each with the dataset it stems from."""

    train: Iterable[Interaction]
    valid: Any
    test: Any
    train_dataset: Dataset


def split(config, dataset: Dataset, model_class: type, run_dir: Path | None = None) -> Phases:
    """Split a loaded dataset by `eval_args` and build what training and evaluation iterate over.

    Args:
        config: of the run.
        dataset: from `create_dataset`.
        model_class: decides the training loader: classes with `trains_on_full_sequences` get whole sequences.
        run_dir: the run's folder, which keeps sampled candidates; None keeps none.

    Raises:
        ConfigError: the split does not fit the model.
        DataError: nothing is left to train on, labels are missing, a user leaves no item for a negative, or the sampled
            candidates that the folder keeps do not fit the data.
    """
    built = dataset.build()
    _check_trainable(config, dataset, built[0], model_class)
    for part in built:
        part.hand_over(dataset.provided)
    modes = config["eval_args"]["mode"]
    ranked = {phase: modes[phase] != "labeled" and config["eval_type"] == EvaluatorType.RANKING for phase in modes}
    samplers = None if all(ranked.values()) else create_samplers(config, dataset, built)
    train = _training_loader(config, dataset, built[0], model_class)
    evaluated = []
    for phase, index in (("valid", 1), ("test", 2)):
        if ranked[phase]:
            evaluated.append(_ranking_data(config, built, index, modes[phase], phase, run_dir))
        else:
            sampler = None if samplers is None else samplers[index]
            evaluated.append(get_dataloader(config, phase)(config, built[index], sampler, shuffle=False))
    if has_first_stage(model_class) and isinstance(evaluated[1], RankingData) and modes["test"] == "full":
        _warn_repeated(evaluated[1].users, dataset.item_num)
    return Phases(train, evaluated[0], evaluated[1], built[0])


def _check_trainable(config, dataset: Dataset, train: Dataset, model_class: type) -> None:
    where, label = f"dataset {dataset.dataset_name!r}", config["LABEL_FIELD"]
    if len(train.inter_feat) == 0:
        raise DataError(
            f"{where}: nothing is left to train on: eval_args.split {config['eval_args']['split']} holds out all there "
            "is, and a sequential model needs an item before each target"
        )
    if "labeled" in config["eval_args"]["mode"].values() and label not in dataset.field2type:
        raise DataError(
            f"{where}: {', '.join(config['metrics'])} need a {label!r} for each interaction: a column {label}:float of "
            ".inter, or threshold: {rating: 3} to make one of a column"
        )
    _check_labels(config, dataset, model_class)


def _check_labels(config, dataset: Dataset, model_class: type) -> None:
    """What is learnt from: labels of the data, or every row as a chosen one beside sampled others."""
    label, labelled = config["LABEL_FIELD"], reads_labels(model_class)
    sampled = config["train_neg_sample_args"]["distribution"] != "none"
    needed = labelled and not sampled and config["MODEL_TYPE"] != ModelType.TRADITIONAL  # Pop does without, too
    if needed and label not in dataset.field2type:
        raise DataError(
            f"dataset {dataset.dataset_name!r}: {config['model']} learns from labels, and there are none: give a "
            f"column {label}:float of .inter, threshold: {{rating: 3}} to make one of a column, or "
            "train_neg_sample_args: {distribution: uniform, sample_num: 1} to sample items that count as not chosen"
        )
    if config["threshold"] is not None and (sampled or not labelled):
        ((field, least),) = config["threshold"].items()
        logger.warning(
            "threshold: %s learns from every row of training as one that was chosen, those below too; leave them out "
            'with val_interval: {%s: "[%s,inf)"}%s',
            *(config["model"], field, least),
            ", or learn from labels with train_neg_sample_args: ~" if labelled else "",
        )


def _training_loader(config, dataset: Dataset, train: Dataset, model_class: Any) -> Iterable[Interaction]:
    if getattr(model_class, "trains_on_full_sequences", False):
        return FullSequenceLoader(
            train,
            batch_size=config["train_batch_size"],
            seed=config["seed"],
            shuffle=config["shuffle"],
            negatives=model_class.wants_negatives(config),
        )
    arguments = config["train_neg_sample_args"]
    sampler = None
    if arguments["distribution"] != "none":
        kind = RepeatableSampler if config["repeatable"] else Sampler
        # Of the training data alone: RecBole's own counts items over all phases for `distribution: popularity`.
        try:
            sampler = kind("train", train, arguments["distribution"], arguments["alpha"]).set_phase("train")
        except ValueError as error:  # the one thing that a sampler refuses
            raise DataError(
                f"dataset {dataset.dataset_name!r}: a user has every item in training, and no negative can be drawn "
                "for it; leave such users out (user_inter_num_interval), or add items"
            ) from error
    loader = get_dataloader(config, "train")
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        knowledge = KGSampler(dataset, arguments["distribution"], arguments["alpha"])
        return loader(config, train, sampler, knowledge, shuffle=True)
    return loader(config, train, sampler, shuffle=config["shuffle"])


def _ranking_data(
    config, built: list[Dataset], index: int, mode: str, phase: str, run_dir: Path | None
) -> RankingData | None:
    if len(built[index].inter_feat) == 0:
        return None
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    users = sequential_cases(built[index]) if sequential else user_cases(built, index)
    if not config["mask_history"]:
        users.history = None
    counts = TrainCounts.of(*training_pairs(built[0]), built[0].user_num, built[0].item_num)
    data = RankingData(users, built[index], mode, counts, phase)
    if mode != "full":
        data.sample(config["seed"], run_dir)
    return data


def _warn_repeated(users: EvalUsers, item_num: int) -> None:
    """Say how many held-out items stand in the histories that a reranker leaves out; it can never put those first."""
    if users.history is None:
        return
    held_out = users.positives.distinct(item_num)
    if repeated := len(held_out.items) - len(held_out.without(users.history.distinct(item_num), item_num).items):
        logger.warning(
            "%d of %d test items stand in the user's own history: with mask_history they are not asked about, and stay "
            "behind every item that is; --mask_history=False asks about all",
            *(repeated, len(held_out.items)),
        )


def training_pairs(train: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """User and item of every training interaction; a sequence's first row, which is no target, is one of them."""
    users, items = _pairs(train)
    if isinstance(train.inter_feat, SequenceSamples):
        flat = train.inter_feat.flat
        first = np.unique(train.row_start[train.inter_feat.targets.numpy()])
        users = np.concatenate([flat[train.uid_field].numpy()[first], users])
        items = np.concatenate([flat[train.iid_field].numpy()[first], items])
    return users, items


def sequential_cases(dataset: Dataset) -> EvalUsers:
    """One case per held-out row: rank its item given all rows of the user before it; those are the history."""
    samples = dataset.inter_feat
    if isinstance(samples, SequenceSamples):
        items = samples.flat[dataset.iid_field].numpy()
        targets = samples.targets.numpy()
        starts = dataset.row_start[targets]
        lengths = targets - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        positives, history = items[targets], CSR(offsets, items[rows])
    else:  # a dataset class or split of RecBole's own: the history is what its padded lists hold
        lists = samples[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
        offsets = np.concatenate([[0], np.cumsum((lists > 0).sum(1))])
        positives, history = samples[dataset.iid_field].numpy(), CSR(offsets, lists[lists > 0])
    return EvalUsers(
        interaction=samples,
        positives=CSR(np.arange(len(positives) + 1), positives),
        history=history,
        user_ids=samples[dataset.uid_field].numpy(),
    )


def user_cases(built: list[Dataset], index: int) -> EvalUsers:
    """One case per user with held-out items in phase `index`: rank them all; items of the phases before are the
    history."""
    dataset = built[index]
    pairs = [_pairs(part) for part in built[: index + 1]]
    users = np.unique(pairs[index][0])
    before = [np.concatenate(column) for column in zip(*pairs[:index])]
    return EvalUsers(
        interaction=dataset.join(Interaction({dataset.uid_field: torch.from_numpy(users)})),
        positives=_by_user(users, *pairs[index]),
        history=_by_user(users, *before),
        user_ids=users,
    )


def _pairs(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return dataset.inter_feat[dataset.uid_field].numpy(), dataset.inter_feat[dataset.iid_field].numpy()


def _by_user(users: np.ndarray, owners: np.ndarray, items: np.ndarray) -> CSR:
    """Distinct items of each of the sorted `users`, from unordered pairs."""
    mine = np.isin(owners, users)
    row, item = np.unique(np.stack([np.searchsorted(users, owners[mine]), items[mine]]), axis=1)
    return CSR(np.searchsorted(row, np.arange(len(users) + 1)), item)
