"""Training, validation and test data of a run: the ranked users, their positives, and the items that are masked.

General and sequential models get the same held-out items, the same masked histories and the same candidates, whatever
loader their training needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from recbole.utils import EvaluatorType, ModelType

from recbole_mm.data.loaders import FullSequenceLoader
from recbole_mm.data.splits import TEST, TRAIN, VALID, Rows
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.ranking import CSR, EvalUsers, RankingData, TrainCounts
from recbole_mm.evaluation.slice_kinds import check_slices
from recbole_mm.models.hooks import hooks_of
from recbole_mm.utils.arrays import sorted_distinct

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """A training loader and two evaluation sets; `split` builds them.

    Attributes:
        train: batches of training interactions.
        valid, test: `RankingData`, one of RecBole's evaluation loaders, or None where nothing is held out.
        train_dataset: the training part of the dataset, which models are built from.
    """

    train: Iterable[Interaction]
    valid: Any
    test: Any
    train_dataset: MultimodalDataset


def split(config: Config, dataset: MultimodalDataset, model_class: type, run_dir: Path | None = None) -> Splits:
    """Split a loaded dataset by `eval_args` and build what training and evaluation iterate over.

    Args:
        config: the run's configuration.
        dataset: from `create_dataset`.
        model_class: the model's class; one with `trains_on_full_sequences` gets a loader of whole sequences.
        run_dir: the run's folder, which keeps sampled candidates; None keeps none.

    Raises:
        ConfigError: the split does not fit the model.
        DataError: nothing is left to train on, labels are missing, a user leaves no item for a negative, or the sampled
            candidates that the folder keeps do not fit the data.
    """
    check_split(config, dataset, model_class)
    modes = config["eval_args"]["mode"]
    ranked = {phase: modes[phase] != "labeled" and config["eval_type"] == EvaluatorType.RANKING for phase in modes}
    only_positives = _only_positives(config, model_class)
    built = [_positives(dataset, part) if only else part for part, only in zip(dataset.build(), only_positives)]
    samplers = None if all(ranked.values()) else create_samplers(config, dataset, built)
    train = _training_loader(config, dataset, built[0], model_class)
    evaluated = []
    for phase, index in (("valid", 1), ("test", 2)):
        if ranked[phase]:
            evaluated.append(_ranking_data(config, built, index, modes[phase], phase, run_dir))
        else:
            sampler = None if samplers is None else samplers[index]
            evaluated.append(get_dataloader(config, phase)(config, built[index], sampler, shuffle=False))
    if hooks_of(model_class).has_first_stage and isinstance(evaluated[1], RankingData) and modes["test"] == "full":
        _warn_repeated(evaluated[1].users, dataset.item_num)
    return Splits(train, evaluated[0], evaluated[1], built[0])


def check_split(config: Config, dataset: MultimodalDataset, model_class: Any) -> Rows:
    """Check that a dataset can be trained on and tested, before anything is computed.

    Args:
        config: the run's configuration.
        dataset: loaded and not yet split.
        model_class: the model's class.

    Returns:
        All interactions and the part that each will belong to.

    Raises:
        ConfigError: the model cannot leave out what is labelled 0, or `slices` names what is not there.
        DataError: nothing is left to train on, or for a phase that is asked for; or labels are missing.
    """
    check_slices(config)
    _, rows = dataset.split_rows()
    parts = [dataset.rows_of_part(rows, phase) for phase in (TRAIN, VALID, TEST)]
    kept = [part[rows.positive[part] | (not only)] for part, only in zip(parts, _only_positives(config, model_class))]
    if len(kept[TRAIN]) < len(parts[TRAIN]) and hooks_of(model_class).trains_on_full_sequences:
        raise ConfigError(
            f"dataset {dataset.dataset_name!r}: training interactions are labelled 0, and a model that is trained on "
            "whole sequences takes each as chosen; leave them out, as in val_interval: {rating: '[4,inf)'} instead of "
            "threshold"
        )
    _check_trainable(config, dataset, len(kept[TRAIN]), model_class)
    for phase, name in ((VALID, "validation"), (TEST, "test")):
        if not len(kept[phase]) and (dataset.benchmark_filename_list or dataset.split.holds_out(phase)):
            what = "no interaction labelled 1" if len(parts[phase]) else "no interaction"
            where = f"dataset {dataset.dataset_name!r}: {what} is held out for {name} by"
            raise DataError(f"{where} {_nothing_held_out(dataset, rows, phase)}")
    return rows


def _nothing_held_out(dataset: MultimodalDataset, rows: Rows, phase: int) -> str:
    """Return the words for a split that leaves a phase empty, and what to do about it."""
    given = dataset.benchmark_filename_list
    if given:
        return f"benchmark_filename {given}; fill its file, or split anew: --benchmark_filename=~"
    first = ", whose first ones never are" if rows.in_time else ""
    without = "" if phase == TEST else ", or {LS: test_only} to go without validation"
    return (
        f"eval_args.split {dataset.config['eval_args']['split']}: there are {len(rows.users)} of "
        f"{dataset.user_num - 1} users{first}; filter fewer, or give another split{without}"
    )


def _check_trainable(config: Config, dataset: MultimodalDataset, targets: int, model_class: Any) -> None:
    where, label = f"dataset {dataset.dataset_name!r}", config["LABEL_FIELD"]
    if targets == 0:
        raise DataError(
            f"{where}: nothing is left to train on: eval_args.split {config['eval_args']['split']} holds out all there "
            "is, and a sequential model needs an item before each target; filter fewer, or give another split"
        )
    if "labeled" in config["eval_args"]["mode"].values() and label not in dataset.field2type:
        raise DataError(
            f"{where}: {', '.join(config['metrics'])} need a {label!r} for each interaction: a column {label}:float of "
            ".inter, or threshold: {rating: 3} to make one of a column"
        )
    if _learns_from_labels(config, model_class) and label not in dataset.field2type:
        raise DataError(
            f"{where}: {config['model']} learns from labels, and there are none: give a column {label}:float of "
            ".inter, threshold: {rating: 3} to make one of a column, or train_neg_sample_args: {distribution: uniform, "
            "sample_num: 1} to sample items that count as not chosen"
        )


def _learns_from_labels(config: Config, model_class: Any) -> bool:
    """Return whether training reads labels; otherwise all interactions are positives, and negatives are sampled."""
    sampled = config["train_neg_sample_args"]["distribution"] != "none"
    return hooks_of(model_class).reads_labels and not sampled and config["MODEL_TYPE"] != ModelType.TRADITIONAL


def _only_positives(config: Config, model_class: Any) -> tuple[bool, bool, bool]:
    """Return for training, validation and test whether interactions that are labelled 0 are left out."""
    modes = config["eval_args"]["mode"]
    return not _learns_from_labels(config, model_class), modes["valid"] != "labeled", modes["test"] != "labeled"


def _positives(dataset: MultimodalDataset, part: MultimodalDataset) -> MultimodalDataset:
    """Return a part without the interactions that are labelled 0; those of the past stay in users' histories."""
    kept = dataset.rows.positive[part.own_rows]
    if kept.all():
        return part
    logger.info("%d of %d interactions of a part of the data are labelled 0: no positives", (~kept).sum(), len(kept))
    return dataset.part(part.own_rows[kept])


def _training_loader(
    config: Config, dataset: MultimodalDataset, train: MultimodalDataset, model_class: Any
) -> Iterable[Interaction]:
    hooks = hooks_of(model_class)
    if hooks.trains_on_full_sequences:
        return FullSequenceLoader(
            train,
            batch_size=config["train_batch_size"],
            seed=config["seed"],
            shuffle=config["shuffle"],
            negatives=hooks.wants_negatives(config),
        )
    arguments = config["train_neg_sample_args"]
    sampler = None
    if arguments["distribution"] != "none":
        kind = RepeatableSampler if config["repeatable"] else Sampler
        # Of the training data alone: RecBole's own counts items over all phases for `distribution: popularity`.
        try:
            sampler = kind("train", train, arguments["distribution"], arguments["alpha"]).set_phase("train")
            if train.item_phases is not None:
                sampler.item_num = train.train_item_num
                if max(map(len, sampler.used_ids)) >= sampler.item_num - 1:
                    raise ValueError("a user has every item that is not held out")
        except ValueError as error:  # the one thing that a sampler refuses
            raise DataError(
                f"dataset {dataset.dataset_name!r}: a user has every item in training, and no negative can be drawn "
                "for it; leave such users out (user_inter_num_interval), or add items"
            ) from error
    loader = get_dataloader(config, "train")
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        knowledge = KGSampler(dataset, arguments["distribution"], arguments["alpha"])
        return loader(config, train, sampler, knowledge, shuffle=config["shuffle"])
    return loader(config, train, sampler, shuffle=config["shuffle"])


def _ranking_data(
    config: Config, built: list[MultimodalDataset], index: int, mode: str, phase: str, run_dir: Path | None
) -> RankingData | None:
    if len(built[index].inter_feat) == 0:
        return None
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    users = sequential_cases(built[index]) if sequential else user_cases(built[index], index)
    if not config["mask_history"]:
        users.history = None
    phases = built[index].item_phases
    if config["candidates"] == "cold" and phases is not None:
        users.history, users.barred = None, np.flatnonzero(phases[1:] != index) + 1
    counts = TrainCounts.of(*training_pairs(built[0]), built[0].user_num, built[0].item_num)
    data = RankingData(users, built[index], mode, counts, phase)
    if mode != "full":
        data.sample(config["seed"], run_dir)
    return data


def _warn_repeated(users: EvalUsers, item_num: int) -> None:
    """Warn of held-out items that are in the user's history, which a reranker leaves out and can never put first."""
    if users.history is None:
        return
    held_out = users.positives.distinct(item_num)
    if repeated := len(held_out.items) - len(held_out.without(users.history.distinct(item_num), item_num).items):
        logger.warning(
            "%d of %d test items stand in the user's own history: with mask_history they are not asked about, and stay "
            "behind every item that is; --mask_history=False asks about all",
            *(repeated, len(held_out.items)),
        )


def training_pairs(train: MultimodalDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the users and items, both (M,) int64, of all training interactions that are positives.

    A sequence's first interaction, which is no target, is one of them.
    """
    rows = train.rows
    mine = (rows.phases == TRAIN) & rows.positive
    return rows.users[mine], rows.items[mine]


def sequential_cases(dataset: MultimodalDataset) -> EvalUsers:
    """Build one case per held-out row: its item is the positive, and the user's rows before it are the history."""
    rows, targets = dataset.rows, dataset.own_rows
    if dataset.benchmark_filename_list is None:
        starts = rows.starts[targets]
        known = lengths = rows.history_ends[targets] - starts
        if rows.ends is not None:  # all items that the user is known by are masked, as they are for a general model
            lengths = np.bincount(rows.users[rows.known_at(TEST)], minlength=dataset.user_num)[rows.users[targets]]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        before = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        history = CSR(offsets, rows.items[before])
    else:  # files of samples: the history is what their lists hold
        lists = dataset.inter_feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
        known = (lists > 0).sum(1)
        history = CSR(np.concatenate([[0], np.cumsum(known)]), lists[lists > 0])
    return EvalUsers(
        interaction=dataset.inter_feat,
        positives=CSR(np.arange(len(targets) + 1), rows.items[targets]),
        history=history,
        user_ids=rows.users[targets],
        known=known,
    )


def user_cases(dataset: MultimodalDataset, phase: int) -> EvalUsers:
    """Build one case per user with held-out items in a phase: these are the positives, and the user's rows that are
    known by then are the history."""
    rows, known = dataset.rows, dataset.rows.known_at(phase)
    owners, items = rows.users[dataset.own_rows], rows.items[dataset.own_rows]
    users = sorted_distinct(owners)
    return EvalUsers(
        interaction=dataset.join(Interaction({dataset.uid_field: torch.from_numpy(users)})),
        positives=_by_user(users, owners, items, dataset.item_num),
        history=_by_user(users, rows.users[known], rows.items[known], dataset.item_num),
        user_ids=users,
        known=np.bincount(rows.users[known], minlength=dataset.user_num)[users],
    )


def _by_user(users: np.ndarray, owners: np.ndarray, items: np.ndarray, item_num: int) -> CSR:
    """Return the distinct items of each of the sorted `users`, from unordered pairs."""
    mine = np.isin(owners, users)
    keys = np.searchsorted(users, owners[mine]) * item_num + items[mine]
    return CSR.from_keys(sorted_distinct(keys), len(users), item_num)
