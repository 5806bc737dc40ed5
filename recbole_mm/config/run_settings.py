"""Settings of a run, of training and of the evaluation: RecBole's and ours."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from recbole.evaluator import metric_types

from recbole_mm.config.kinds import (
    FLAG,
    MAPPING,
    NAMES,
    PATH,
    SEED,
    SHARE,
    TEXT,
    Kind,
    above_zero,
    choice,
    from_to,
    is_list_of,
    is_whole,
    list_of,
    not_empty,
    number,
    or_null,
    whole,
)
from recbole_mm.config.schema import Setting, of_group
from recbole_mm.utils.paths import expanded

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
"""Optimizers; RecBole takes Adam for any other name."""


_CLIPPING = {
    "max_norm": above_zero(),
    "norm_type": Kind(lambda value: type(value) in (int, float) and value > 0, "a number above 0"),
    "error_if_nonfinite": FLAG,
    "foreach": or_null(FLAG),
}


def _is_clipping(value: Any) -> bool:
    """Arguments of torch's `clip_grad_norm_`, or the first of them alone."""
    if value is None or above_zero().accepts(value):
        return True
    named = isinstance(value, dict) and "max_norm" in value and value.keys() <= _CLIPPING.keys()
    return named and all(_CLIPPING[key].accepts(entry) for key, entry in value.items())


def _is_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"(\d+(,\s*\d+)*)?", value) is not None
    return value is None or is_whole(value, 0) or is_list_of(value, lambda entry: is_whole(entry, 0))


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_COUNTS = "a whole number of at least 1, or a list of them"
_METRICS = "names out of " + ", ".join(sorted(metric_types))
_RECBOLE = "RecBole's"
_MOST_SLICES = 20

# fmt: off
NAMES_OF_A_RUN = of_group("run", "",
    Setting("model", replace(TEXT, words="a model's name"), meaning="A model of `recbole-mm models`.",
            given_as="each row names its model", not_tuned="it is given as --model"),
    Setting("dataset", replace(TEXT, words="a folder's name"), meaning="The dataset: a folder under data_path.",
            ranks=True, same_data=True, given_as="it is given as --dataset"),)

TRAINING = (
    *of_group("training", _RECBOLE,
        Setting("epochs", whole(0), meaning="Passes over the training data, at most.", stops=True),
        Setting("stopping_step", whole(0), meaning="Validations without a better one before training ends."
                "", stops=True),
        Setting("eval_step", whole(0), meaning="Epochs between two validations. 0: none.", stops=True),
        Setting("train_batch_size", whole(1), meaning="Training samples per batch."),
        Setting("learning_rate", above_zero(1e6), meaning="Of the optimizer."),
        Setting("weight_decay", number(0, 1e6), meaning="Of the optimizer (L2)."),
        Setting("learner", Kind(lambda value: isinstance(value, str) and value.lower() in LEARNERS,
                                f"one of {', '.join(LEARNERS)}", is_text=True, type="str"), meaning="The optimizer."),
        Setting("clip_grad_norm", Kind(_is_clipping, "a number above 0, a mapping such as {max_norm: 5}, or null"),
                meaning="Arguments of torch's clip_grad_norm_. Null: gradients are not clipped.", finite=False),
        Setting("train_neg_sample_args", Kind(lambda value: True, "a mapping such as {sample_num: 1}, or null"),
                meaning="How negatives are drawn for training. Null: none are.",
                no_effect_on_sequences="whole sequences are trained on, and negatives come with them"),
        Setting("loss_decimal_place", from_to(0, 18), meaning="Digits printed of a loss."),
        Setting("require_pow", FLAG, meaning="Square the norms of an embedding loss."),
        Setting("shuffle", FLAG, meaning="Draw training samples in another order in each epoch."),
        Setting("transform", or_null(TEXT), meaning="How a batch of sequences is transformed, such as crop_itemseq.",
                no_effect_on_sequences="whole sequences are trained on, and no sample of one is transformed"),
        Setting("enable_scaler", FLAG, meaning="Scale losses of mixed precision.",
                no_effect="losses are scaled where enable_amp needs it"),
        Setting("world_size", Kind(lambda value: True, "a number", type="int"), meaning="Processes of RecBole's.",
                no_effect="give train_workers to train in several processes")),
    *of_group("training", "training",
        Setting("full_sequence", FLAG, False, "One pass per sequence, loss at every position, for models that can. "
                "False: a sample per prefix."),
        Setting("warmup_ratio", SHARE, 0.0, "Share of all optimizer steps over which the learning rate climbs "
                "linearly."),
        Setting("warmup_steps", or_null(whole(0)), None, "The same as a number of steps; give one of the two."),
        Setting("warmup_start_factor", SHARE, 0.01, "The warm-up starts at this share of learning_rate."),
        Setting("lr_scheduler", choice("constant", "cosine", "linear"), "constant", "What follows the warm-up, per "
                "optimizer step: constant, cosine or linear (the last two end at 0)."),
        Setting("gradient_accumulation_steps", whole(1), 1,
                "Batches whose gradients are averaged into one optimizer step."),
        Setting("max_train_steps", or_null(whole(1)), None,
                "End training after so many optimizer steps. Null: after epochs.", stops=True),
        Setting("max_train_seconds", or_null(above_zero()), None,
                "End training after so many seconds of the processor, of all cores together, validation aside: for "
                "models of equal cost. Such a run is not the same run twice. Null: after epochs.", stops=True),
        Setting("checkpoint_every", whole(1), 1, "Epochs between two checkpoints to resume from."),
        Setting("train_workers", whole(1), 1, "Processes that train together, on the Ray of ray_address or one started "
                "here (docs/distributed.md). 1: this one.", changes_result=False),
        Setting("enable_amp", FLAG, False, "Mixed precision training on a GPU.")),
)

EVALUATION = (
    *of_group("evaluation", "one protocol for every model: leave-one-out, time order, full ranking",
        Setting("eval_args", MAPPING, {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user",
                                       "mode": "full"},
                "How data is cut and ranked. A key you leave out keeps the value given here.", ranks=True, parts={
            "split": "(dict) LS: each user's last item is for test, the one before for validation. RS: "
                     "[0.8,0.1,0.1]: by ratio. TS: test after a point in time. cold_items: [0.8,0.1,0.1]: all of some "
                     "items (docs/cold-start.md).",
            "order": "(str) TO: by exact time, equal times keep the file's order. RO: shuffled by the seed.",
            "group_by": "(str) RS cuts, user: each user's interactions. none: all interactions together. LS, TS: no "
                        "effect.",
            "mode": "(str) full: rank every item. uni100 / pop100: against 100 sampled items. labeled: given labels."}),
        Setting("metrics", not_empty(list_of(lambda name: isinstance(name, str) and name.lower() in metric_types,
                                             _METRICS)),
                ["NDCG", "Recall", "MRR", "Hit"], "RecBole metric names.", scores=True),
        Setting("topk", not_empty(list_of(lambda k: is_whole(k, 1), _COUNTS, "list of int")), [10, 20, 50],
                "Lengths of the ranked list.", scores=True),
        Setting("valid_metric", TEXT, "NDCG@10", "Chooses the best epoch and stops training; one of metrics at one of "
                "topk.", stops=True, scores=True),
        Setting("metric_decimal_place", from_to(0, 18), 6, "Digits kept of every metric."),
        Setting("mask_history", FLAG, True, "Never recommend an item of the user's history, whatever the model; a "
                "positive is never masked.", ranks=True, inherited=True),
        Setting("candidates", choice("interacted", "catalogue", "cold"), "interacted", "What is ranked. interacted: "
                "items of at least one interaction. catalogue: also items only in .item. cold: the phase's items of "
                "split: {cold_items: ...}.", ranks=True, inherited=True,
                same_data=True),
        Setting("positives", choice("last", "popular"), "last", "last: of all of a user's items. popular: as "
                "MLLM-MSR's released code, marked in tables (docs/evaluation.md)."
                "", ranks=True, inherited=True, same_data=True,
                before="last"),
        Setting("eval_memory_mb", above_zero(), 256, "MB of scores held at once while ranking; only speed and memory "
                "depend on it.", inherited=True, may_change_on_resume=True),
        Setting("slices", replace(NAMES, accepts=lambda value: NAMES.accepts(value) and len(value) <= _MOST_SLICES,
                                  words=f"a name or a list of at most {_MOST_SLICES} names"),
                ["popularity", "history", "modality"], "Metrics of parts of the test targets, in result.json "
                "(docs/slices.md): by popularity in training, by length of history, by modality present or missing, by "
                "any column of .item or .user.", alike=True, inherited=True, changes_result=False),
        Setting("save_per_user", FLAG, True, "Write per_user.parquet: each test user's metrics, for paired tests "
                "between models.", alike=True, inherited=True),
        Setting("save_rankings", choice("trec", None), None, "trec: write each test user's list and held-out items as "
                "rankings.trec and qrels.trec, for ir-measures, ranx or trec_eval (docs/evaluation.md).",
                changes_result=False)),
    *of_group("evaluation", _RECBOLE,
        Setting("eval_batch_size", whole(1), meaning="Test cases (or labeled rows) per batch.",
                may_change_on_resume=True),
        Setting("repeatable", FLAG, meaning="Whether an item of the history may be a target; True for sequences."),
        Setting("tail_ratio", or_null(above_zero()), meaning="What TailPercentage takes for the tail of the items.")),
)

CLUSTER = of_group("cluster", "where stages before training are computed (docs/cluster.md)",
    Setting("ray_address", or_null(TEXT), None, "Ray cluster that encodes, writes texts and trains: auto, host:port, "
            "ray://host:port; local: a Ray here. Null: no Ray, unless train_workers asks for one here.",
            when_opened=None),
    Setting("ray_workers", whole(0), 0, "Worker processes on it, each with a model of its own. 0: as many as there is "
            "room for."),
    Setting("ray_cpus_per_worker", or_null(above_zero()), None, "CPUs that a worker reserves. Null: 1 with a GPU, "
            "else the threads of torch here."),
    Setting("ray_gpus_per_worker", or_null(number(0)), None, "GPUs of a worker, or a share of one such as 0.5. Null: "
            "1 if the run has a GPU, else 0."),
    Setting("ray_object_store_mb", or_null(whole(1)), None, "Object store of the Ray of ray_address: local. Null: "
            "512."),
    changes_result=False)

RUN = (
    *of_group("run", "of a run",
        Setting("resume", Kind(lambda value: isinstance(value, bool) or PATH.accepts(value),
                               "True, False or a run's folder", expanded, type="bool or str"), False, "Go on with the "
                "newest unfinished run of the same settings, or with the run in this folder.", changes_result=False,
                given_as="what was interrupted is always resumed"),
        Setting("load_best_model", FLAG, True, "Test with the weights of the best validation epoch. False: with "
                "those of the last one.", stops=True, scores=True),
        Setting("log_style", choice("compact", "recbole"), "compact", "What a run prints. compact: a line for the "
                "data, the model and each epoch; run.log has more. recbole: as RecBole does.", inherited=True,
                changes_result=False),
        Setting("show_progress", FLAG, True, "A progress bar on a terminal, a log line every 10 seconds elsewhere.",
                inherited=True, changes_result=False)),
    *of_group("run", "where things are kept",
        Setting("checkpoint_dir", PATH, "saved", "Folder of run folders.", inherited=True, changes_result=False),
        Setting("artifact_dir", or_null(PATH), None, "Folder of everything computed once and reused (texts, vectors). "
                "Null: <checkpoint_dir>/artifacts.", inherited=True, changes_result=False)),
    *of_group("run", _RECBOLE,
        Setting("data_path", PATH, meaning="Folder of dataset folders.", inherited=True, changes_result=False),
        Setting("seed", SEED, meaning="Of everything random, from the split to the weights.", inherited=True,
                given_as="seeds are given as --seeds", not_tuned="a good seed is luck, not a setting"),
        Setting("reproducibility", FLAG, meaning="Let torch take deterministic algorithms.", inherited=True),
        Setting("use_gpu", FLAG, meaning="Compute on a GPU where there is one.", inherited=True,
                may_change_on_resume=True, not_tuned="the resources of a trial are given as --gpus_per_trial"),
        Setting("gpu_id", Kind(_is_gpu, "a GPU's number, several as in 0,1, or nothing for the CPU", type="str"),
                meaning="The GPU, counted from 0; of several the first one.", inherited=True, may_change_on_resume=True,
                not_tuned="the resources of a trial are given as --gpus_per_trial")),
)

LOGGING = of_group("logging", _RECBOLE,
    Setting("state", Kind(lambda value: isinstance(value, str) and value.upper() in _LEVELS,
                          f"a logging level: {', '.join(_LEVELS)}", is_text=True, type="str"),
            meaning="Level of the log: DEBUG, INFO, WARNING, ERROR or CRITICAL.", inherited=True, changes_result=False),
    Setting("log_wandb", FLAG, meaning="Send metrics to Weights & Biases.", changes_result=False),
    Setting("wandb_project", TEXT, meaning="Project there.")) + of_group("logging", "MLflow (docs/tracking.md)",
    Setting("log_mlflow", FLAG, False, "Send settings and metrics to MLflow.", when_opened=False),
    Setting("mlflow_tracking_uri", or_null(TEXT), None, "Its server or folder. Null: MLflow's own default, such as "
            "MLFLOW_TRACKING_URI.", when_opened=None, secret=True),
    Setting("mlflow_experiment", TEXT, "recbole", "Experiment there."),
    changes_result=False)

_ANY = Kind(lambda value: True, "anything")
DERIVING = of_group("run", "what follows from the others",
    Setting("MODEL_TYPE", _ANY, meaning="General, sequential, ... by the model's class."),
    Setting("MODEL_INPUT_TYPE", _ANY, meaning="What a training sample is."),
    Setting("eval_type", _ANY, meaning="Ranking or value metrics."),
    Setting("device", _ANY, meaning="Where tensors are.", may_change_on_resume=True),
    Setting("single_spec", _ANY, meaning="RecBole's."),
    Setting("local_rank", _ANY, meaning="RecBole's."),
    Setting("valid_metric_bigger", _ANY, meaning="Whether a larger valid_metric is a better one."),
    Setting("valid_neg_sample_args", _ANY, meaning="Of eval_args."),
    Setting("test_neg_sample_args", _ANY, meaning="Of eval_args."),
    Setting("data_files", _ANY, meaning="Digests of the dataset's files.", ranks=True),
    Setting("feature_files", _ANY, meaning="Digests of the files of item_features."),
    Setting("split_rule", _ANY, meaning="Number of the rule by which interactions are split.", ranks=True),
    Setting("rerank_rule", _ANY, meaning="Number of the rule by which a reranker chooses what it asks about."),
    derived=True)
# fmt: on
