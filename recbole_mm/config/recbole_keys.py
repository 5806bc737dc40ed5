"""What the property files of RecBole 1.2.1 do not tell of its models' settings; tests compare it with its source."""

from __future__ import annotations

from recbole_mm.config.kinds import PATH, Kind, choice, or_null
from recbole_mm.config.schema import Setting
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
