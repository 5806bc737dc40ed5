"""The model card of a run: a README.md in the layout that Hugging Face reads, of facts that the run's folder has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import recbole_mm
from recbole_mm.config.yaml_settings import plain, write_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.needs import needed, read_features, reads_mllm
from recbole_mm.models.hooks import hooks_of
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.registry import find_model
from recbole_mm.runs.folder import read_result
from recbole_mm.runs.summary import data_line, model_line
from recbole_mm.utils.escaping import markdown
from recbole_mm.utils.tables import SEES_HELD_OUT

FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter", "load_col")
"""Settings that decide which interactions there are."""

PROTOCOL = ("eval_args", "mask_history", "candidates", "positives", "metrics", "topk", "valid_metric", "seed")


def model_card(recommender: Recommender, files: Mapping[str, str]) -> str:
    """Return the model card of a run as Markdown.

    Args:
        recommender: of the run.
        files: name -> what it holds, of what lies beside the card.
    """
    run, config, result = recommender.run, recommender.config, read_result(recommender.run.run_dir)
    name, dataset = config["model"], config["dataset"]
    parts = [
        f"---\n{write_yaml(_front(recommender, result)).strip()}\n---",
        f"# {markdown(name)} on {markdown(dataset)}",
        _paper(name),
        "## Data",
        markdown(data_line(recommender.dataset, recommender.dataset.rows)) + ".",
        _settings(recommender, FILTERS),
        _table(("file", "SHA-256, its beginning"), (config["data_files"] or {}).items()),
        "## Model",
        markdown(model_line(run.model, config)) + ".",
        "## What it saw",
        _seen(recommender, result),
        "## Protocol",
        _settings(recommender, PROTOCOL),
        "## Results",
        _results(recommender, result),
        "## Cost",
        _cost(result),
        "## Files",
        _table(("file", "what it holds"), files.items()),
        "## Use",
        _use(recommender),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(recommender: Recommender, result: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that Hugging Face's hub reads."""
    name, dataset = recommender.config["model"], recommender.config["dataset"]
    kind = "sequential-recommendation" if recommender.is_sequential else "collaborative-filtering"
    metrics = [{"type": metric, "value": value} for metric, value in result["test_result"].items()]
    entry = {
        "task": {"type": "recommendation"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": metrics,
    }
    return {
        "library_name": "recbole_mm",
        "tags": ["recommendation", kind, "recbole"],
        "datasets": [dataset],
        "model-index": [{"name": f"{name}-{dataset}", "results": [entry]}],
    }


def _paper(name: str) -> str:
    try:
        return markdown(find_model(name).paper or "")
    except ConfigError:  # a class of one's own, given with the run
        return ""


def _settings(recommender: Recommender, names: Sequence[str]) -> str:
    given = {name: plain(name, recommender.config[name]) for name in names if recommender.config[name] is not None}
    return _table(("setting", "value"), given.items())


def _seen(recommender: Recommender, result: Mapping[str, Any]) -> str:
    """What training read, and whether anything that is held out was part of it."""
    hooks = hooks_of(type(recommender.model))
    inputs = ["interactions", *needed(recommender.config, hooks), *read_features(recommender.config)]
    lines = [f"Inputs: {', '.join(map(markdown, dict.fromkeys(inputs)))}."]
    if recommender.config["mllm"] and reads_mllm(recommender.config, hooks):
        lines.append(f"Its LLM is {markdown(str(recommender.config['mllm']))}.")
    if {"user_profiles", "user_preferences", "item_texts", "item_text_features"} & set(inputs):
        writer = recommender.config["text_model"] or recommender.config["text_backend"]
        lines.append(f"Texts were written by {markdown(str(writer))}.")
    seen = result.get("sees_held_out") or []
    lines += [f"**{SEES_HELD_OUT}**: {markdown(text)}." for text in seen]
    if "sees_held_out" not in result:
        lines.append("Its result is of an older version, which did not say whether training saw held-out interactions.")
    elif not seen:
        lines.append("No interaction that is held out for validation or test was part of its training.")
    if chosen := result.get("chosen_on_validation"):
        lines.append(f"Chosen on validation: {markdown(chosen)}.")
    return " ".join(lines)


def _results(recommender: Recommender, result: Mapping[str, Any]) -> str:
    columns = {"test": result["test_result"], "validation": result["best_valid_result"]}
    columns |= {f"{name}, test": values for name, values in (result.get("beside") or {}).items()}
    metrics = list(result["test_result"])
    rows = [(metric, *(_number(values.get(metric)) for values in columns.values())) for metric in metrics]
    return _table(("metric", *columns), rows)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"


def _cost(result: Mapping[str, Any]) -> str:
    stages = result.get("stages") or {}
    rows = [(name, f"{said['seconds']:.1f}", f"{said['peak_memory_mb']:.0f}") for name, said in stages.items()]
    versions = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())
    return _table(("stage", "seconds", "peak memory, MiB"), rows) + f"\n\nVersions: {markdown(versions)}."


def _use(recommender: Recommender) -> str:
    folder = recommender.run.run_dir.name
    lines = ["import recbole_mm", "", f'recbole_mm.recommend("{folder}", users=["..."])']
    if recommender.is_sequential:
        lines.append(f'recbole_mm.recommend("{folder}", histories=[["..."]])')
    code = "\n".join(f"    {line}" if line else "" for line in lines)
    return f"From the folder of the run, with recbole_mm {recbole_mm.__version__} and the dataset at hand:\n\n{code}"


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [[markdown(str(cell)) for cell in row] for row in rows]
    if not lines:
        return ""
    table = [list(header), ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)
