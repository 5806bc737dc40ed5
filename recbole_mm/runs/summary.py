"""A run's data and model, each in a line, and the baseline that its result is printed with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import BEFORE, PROTOCOL
from recbole_mm.config.yaml_settings import canonical, read_yaml
from recbole_mm.data.splits import TEST, TRAIN, VALID, Rows
from recbole_mm.errors import RecboleMMError
from recbole_mm.inputs.needs import needed, read_features
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs.folder import CONFIG, is_finished, read_result

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

BASELINE = "SASRec"

COMPARED = (*PROTOCOL, "metrics", "topk")
"""Settings under which two runs' test metrics are of the same cases and candidates, with the seed where it draws."""


def data_line(dataset: MultimodalDataset, rows: Rows) -> str:
    """Returns the size of a dataset, without the padding ids, and of its parts.

    `ml-100k: 943 users, 1,682 items, 100,000 interactions (93.70% sparse); 98,114 train, 943 valid, 943 test`
    """
    users, items, count = dataset.user_num - 1, dataset.item_num - 1, len(rows.users)
    counts = (f"{len(rows.of_phase(phase)):,}" for phase in (TRAIN, VALID, TEST))
    parts = ", ".join(f"{count} {name}" for count, name in zip(counts, ("train", "valid", "test"), strict=True))
    sparsity = f"{1 - count / (users * items):.2%} sparse"
    name = dataset.dataset_name
    return f"{name}: {users:,} users, {items:,} items, {count:,} interactions ({sparsity}); {parts}"


def model_line(model: nn.Module, config: Config) -> str:
    """Returns the name, parameters, inputs and device of a model.

    `Molar: 85,120 trainable and 1,116,160 frozen parameters; inputs: interactions, item_vectors; device: cpu`
    """
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    frozen = f" and {sizes[False]:,} frozen" if sizes[False] else ""
    inputs = ["interactions", *needed(config, hooks_of(type(model))), *read_features(config)]
    return (
        f"{config['model']}: {sizes[True]:,} trainable{frozen} parameters; "
        f"inputs: {', '.join(dict.fromkeys(inputs))}; device: {config['device']}"
    )


def finished_baseline(config: Config) -> tuple[Path, dict[str, float]] | None:
    """Returns the folder and test metrics of a finished SASRec run on the same data, cases and candidates.

    Of several under `checkpoint_dir` it is the one with the best validation result, the newest of equal ones. Folders
    that cannot be read are passed over. Returns None if there is no such run, and for SASRec itself.

    Args:
        config: of the run whose result is shown.
    """
    if config["model"] == BASELINE:
        return None
    ours = config.as_dict()
    drawn = set(ours["eval_args"]["mode"].values()) != {"full"} or ours["eval_args"]["order"] != "TO"
    sign = 1 if config["valid_metric_bigger"] else -1
    found: list[tuple[float, float, str, dict[str, float]]] = []
    for folder in Path(config["checkpoint_dir"]).glob(f"{BASELINE}-*"):
        if not is_finished(folder):
            continue
        try:
            theirs, result = read_yaml(folder / CONFIG), read_result(folder)
        except RecboleMMError:
            continue
        keys = (*COMPARED, "seed") if drawn else COMPARED
        same = all(canonical(theirs.get(key, BEFORE.get(key))) == canonical(ours.get(key)) for key in keys)
        if same and theirs.get("model") == BASELINE and not result.get("sees_held_out"):
            score = result["best_valid_result"].get(config["valid_metric"].lower(), -sign * math.inf)
            found.append((sign * score, (folder / CONFIG).stat().st_mtime, str(folder), result["test_result"]))
    if not found:
        return None
    *_, best, test_result = max(found, key=lambda entry: entry[:3])
    return Path(best), test_result
