"""What the property files of RecBole 1.2.1 do not tell of its models' settings, which tests compare with its source;
and the settings that we add to some of its models."""

from __future__ import annotations

from recbole_mm.config.kinds import PATH, SHARE, Kind, choice, number, or_null, size
from recbole_mm.config.schema import Setting, declared_by, section
from recbole_mm.utils.paths import expanded

OF_RECBOLE_MODELS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("teacher", choice("CrossNet", "CIN")),  # KD_DAGFM evaluates it as Python
        *(Setting(name, or_null(PATH)) for name in ("pretrain_path", "mf_pretrain_path", "mlp_pretrain_path")),
        Setting(
            "pre_model_path",
            Kind(lambda value: value is None or isinstance(value, str), "a path", expanded, is_text=True, type="str"),
        ),
        Setting("lgb_params", finite=False),  # XGBoost's `missing` may be nan
        Setting("xgb_params", finite=False),
    )
}
"""Settings of which more holds than their defaults tell. Those without a kind are of that of their default."""

_EVERY = ("double_tower", "embedding_size", "reg_weight", "mask_ratio", "ft_ratio", "eta", "beta")
"""What the code around every model reads: the bases of models, the trainer, and `transform` of sequences."""

_UNLISTED: dict[str, tuple[str, ...]] = {
    "AutoInt": ("has_residual",),
    "DiffRec": ("norm",),
    "FEARec": ("contrast", "sim", "tau", "use_filter"),
    "KD_DAGFM": ("cin", "feature_num"),
    "LDiffRec": ("norm",),
    "LightGBM": ("token_num_threshold",),
    "XGBoost": ("token_num_threshold", "xgb_early_stopping_rounds"),
}
"""Settings that a model reads and its property file lacks, by the class's name."""


def unlisted(model_class: type) -> set[str]:
    """Settings that a class reads and that no property file names.

    Args:
        model_class: RecBole's, or one that is derived from RecBole's.
    """
    return {*_EVERY, *(key for base in model_class.__mro__ for key in _UNLISTED.get(base.__name__, ()))}


_OF_DRAWN = {"full_sequence_loss": ("sampled_softmax", "gbce")}

LOSSES = section(
    "The loss of full_sequence: True",
    Setting(
        "full_sequence_loss",
        or_null(choice("CE", "BPR", "sampled_softmax", "gbce")),
        meaning="CE, BPR: RecBole's. sampled_softmax: softmax over the target and n_negatives drawn items. gbce: the "
        "generalised binary cross-entropy of the same, as in gSASRec. Null: loss_type.",
    ),
    Setting(
        "n_negatives",
        or_null(size(1)),
        meaning="sampled_softmax, gbce: negatives of each target, uniform, with repetition. Null: 256, as in gSASRec.",
        read_where=_OF_DRAWN,
    ),
    Setting(
        "negatives_of",
        or_null(choice("target", "batch")),
        meaning="target: each target draws its own, as in gSASRec. batch: all targets of a batch share them, which is "
        "less work. Null: target.",
        read_where=_OF_DRAWN,
    ),
    Setting(
        "negatives_exclude",
        or_null(choice("target", "sequence")),
        meaning="What is never a negative. target: the target itself. sequence: every item of its sequence, as in "
        "SASRec. Null: target.",
        read_where=_OF_DRAWN,
    ),
    Setting(
        "gbce_t",
        or_null(number(0, 1)),
        meaning="gbce: calibration, from 0 (plain binary cross-entropy) to 1. Null: 0.75, as in gSASRec.",
        read_where={"full_sequence_loss": ("gbce",)},
    ),
    Setting(
        "item_dropout_prob",
        or_null(SHARE),
        meaning="Dropout of the items' vectors: one draw for a batch, where items are read and where they are scored. "
        "Null: 0.",
        read_where={"full_sequence": (True,)},
    ),
)

ADDED: dict[str, tuple[Setting, ...]] = {"SASRec": LOSSES, "GRU4Rec": LOSSES}
"""Settings of ours that RecBole's classes have here, by the class's name. They are null until they are given, so that
runs without them are the same runs as ever."""


def declared_for(model_class: type) -> dict[str, Setting]:
    """Settings that a class declares, or that a class of RecBole's is given here; not those given to its bases.

    Args:
        model_class: of any model.
    """
    upstream = model_class.__module__.startswith("recbole.model.")
    added = ADDED.get(model_class.__name__, ()) if upstream else ()
    return {**{setting.name: setting for setting in added}, **declared_by(model_class)}
