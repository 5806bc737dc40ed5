"""The folder of a run: its files, the settings that name it, which folder a run takes or resumes, and `result.json`.

checkpoint_dir/Molar-ml-100k-3f9a1c20/     model, dataset, and a digest of every setting that can change the result
    config.yaml  result.json  model.safetensors  checkpoint.safetensors  per_user.parquet  run.log
"""

from __future__ import annotations

import glob
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import RANKED, named
from recbole_mm.config.yaml_settings import canonical, read_yaml
from recbole_mm.errors import CheckpointError, DiskError, RecboleMMError
from recbole_mm.evaluation.splits import Splits
from recbole_mm.runs.profiling import versions
from recbole_mm.utils.files import disk_errors, make_folder, read_json, write_json
from recbole_mm.utils.log import close_logging, init_logging

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs

logger = logging.getLogger(__name__)

CONFIG, RESULT, WEIGHTS, CHECKPOINT = "config.yaml", "result.json", "model.safetensors", "checkpoint.safetensors"

NO_EFFECT_ON_RESULT = frozenset(named(lambda setting: not setting.changes_result))
"""Settings that do not name the folder."""

MAY_CHANGE = frozenset(named(lambda setting: setting.may_change_on_resume))
"""Settings that an interrupted run may be resumed with other values of: where it runs, and how it asks a server."""


@dataclass
class Run:
    """A finished or reloaded run.

    Attributes:
        config, dataset, model: ready to score: `model.full_sort_predict(...)`.
        splits: training, validation and test data.
        run_dir: the run's folder.
        test_result, best_valid_result: metric -> value, as RecBole names them.
        sees_held_out: how its training saw held-out interactions, one text each; empty where it did not.
        beside: test metrics of other models that are printed with its own, by name.
        chosen: what the model took of its `validation_choices`, in words; empty where it has none.
        slices: kind -> part -> users, targets, weight and test metrics (docs/slices.md).
        genericness: figures of the texts about users that it reads, by what they are.
        tokens_per_user: tokens that its LLM reads and writes for a user, on average, by what for.
        inputs_at_test: what the model receives in the test, where `missing_at` makes that another thing; None once the
            model has it, and where it is the same.
    """

    config: Config
    dataset: MultimodalDataset
    model: Any
    splits: Splits
    run_dir: Path
    test_result: dict[str, float] = field(default_factory=dict)
    best_valid_result: dict[str, float] = field(default_factory=dict)
    sees_held_out: list[str] = field(default_factory=list)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: str = ""
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    genericness: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens_per_user: dict[str, float] = field(default_factory=dict)
    inputs_at_test: ModelInputs | None = None


def choose_run_dir(config: Config) -> tuple[Path, bool]:
    """Folder for a run: a new one, or the folder that `resume` names, or with `resume: True` the newest unfinished
    folder of the same settings, or else the newest finished one, since a kill may have come when all was done.

    Returns:
        The folder, which exists, and whether there is a checkpoint in it to resume.

    Raises:
        CheckpointError: the folder that `resume` names is not that of a run, or of one with other settings or data.
        DiskError: no folder can be made.
    """
    if isinstance(config["resume"], str):
        named = Path(config["resume"])
        if not (named / CONFIG).is_file():
            raise CheckpointError(f"--resume={named}: not a run folder (it has no {CONFIG})")
        _require_same_run(named, config)
        return named, (named / CHECKPOINT).is_file()
    first, earlier = first_run_dir(config), earlier_run_dirs(config)
    if config["resume"]:
        unfinished = [path for path in earlier if not is_finished(path)]
        if unfinished:
            return unfinished[-1], (unfinished[-1] / CHECKPOINT).is_file()
        complete = [path for path in earlier if (path / WEIGHTS).is_file()]  # without epochs there are no weights
        if complete:
            return complete[-1], False
        logger.warning("nothing to resume: no run of these settings under %s", config["checkpoint_dir"])
    make_folder(first.parent)
    taken = [first, *(first.with_name(f"{first.name}-{n}") for n in range(2, 10_000))]
    return next(path for path in taken if _make(path)), False


def _make(folder: Path) -> bool:
    """Make a folder; False if it is there already, perhaps since a moment."""
    try:
        with disk_errors(folder):
            folder.mkdir()
    except DiskError:
        if not folder.exists():
            raise
        return False
    return True


@contextmanager
def started(run_dir: Path, config: Config, resumed: bool) -> Iterator[None]:
    """Begin a run in its folder: its log and `config.yaml`. A run that is refused before it trains leaves no folder.

    Args:
        run_dir: of the run, whose lock is held.
        config: its settings.
        resumed: whether a checkpoint was there when the folder was chosen.
    """
    make_folder(run_dir)  # the process that held the lock before may have failed and removed it
    new = not (run_dir / CONFIG).exists()
    mark = " (resumed)" if resumed and (run_dir / CHECKPOINT).is_file() else ""
    try:
        init_logging(run_dir, config["state"], config["log_style"])
        config.save(run_dir / CONFIG)
        logger.info("%s on %s -> %s%s", config["model"], config["dataset"], run_dir, mark)
        yield
    except KeyboardInterrupt:
        logger.warning("interrupted; continue with the same command and --resume")
        raise
    except RecboleMMError:
        if new and not any((run_dir / name).exists() for name in (CHECKPOINT, WEIGHTS)):
            close_logging()
            shutil.rmtree(run_dir, ignore_errors=True)  # the error is what matters, not that this failed too
        raise


def _require_same_run(folder: Path, config: Config) -> None:
    """Refuse to go on with a run under settings or on data that are not its own: its result would be of neither.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    theirs, ours = (result_settings(every) for every in (read_yaml(folder / CONFIG), config.as_dict()))
    for key in sorted({*theirs, *ours} - MAY_CHANGE):
        if key not in theirs or key not in ours or canonical(theirs[key]) != canonical(ours[key]):
            raise CheckpointError(
                f"--resume={folder} was run with {key}: {theirs.get(key)!r}, not {ours.get(key)!r}; go on with its own "
                "settings, or start a new run"
            )


def first_run_dir(config: Config) -> Path:
    """Folder of the first run of these settings, named by model, dataset and a hash of every setting that can change
    the result; later ones have -2, -3, ... appended."""
    digest = hashlib.sha256(canonical(result_settings(config.as_dict())).encode())
    return Path(config["checkpoint_dir"]) / f"{config['model']}-{config['dataset']}-{digest.hexdigest()[:8]}"


def earlier_run_dirs(config: Config) -> list[Path]:
    """Folders of the runs of these settings so far, finished or not, in the order of their numbers."""
    first = first_run_dir(config)
    numbered = {}
    for path in first.parent.glob(f"{glob.escape(first.name)}*"):
        suffix = re.fullmatch(r"(?:-(\d+))?", path.name.removeprefix(first.name))
        if suffix and path.is_dir():
            numbered[int(suffix[1] or 1)] = path
    return [numbered[number] for number in sorted(numbered)]


def is_finished(run_dir: Path) -> bool:
    """Whether the folder is that of a complete run: its result is the last file that is written."""
    return (run_dir / RESULT).is_file()


def require_finished(run_dir: Path) -> None:
    """Make sure that a run can be loaded from a folder.

    Raises:
        CheckpointError: a file is missing.
    """
    for name in (CONFIG, RESULT, WEIGHTS):
        if not (run_dir / name).is_file():
            raise CheckpointError(f"{run_dir}: no {name}; give the folder of a finished run")


def result_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that can change a run's result."""
    return {key: value for key, value in settings.items() if key not in NO_EFFECT_ON_RESULT}


def changed_files(config: Config) -> list[str]:
    """Files of the dataset that are not what they were when the run of this config began."""
    changed: set[str] = set()
    for kind, now in config.current_files().items():
        if config[kind] is not None:  # a config that is older than this says nothing
            changed.update(name for name, _ in set(now.items()) ^ set(config[kind].items()))
    return sorted(changed)


def read_result(run_dir: Path) -> dict[str, Any]:
    """`result.json` of a run, which anybody may have written.

    What is of another kind than a run writes is left out, with a warning.

    Raises:
        CheckpointError: it is not there, damaged or cannot be read, or does not say what training saw.
    """
    try:
        result = read_json(run_dir / RESULT)
        wrong = [name for name, is_right in _KINDS_OF_VALUES.items() if name in result and not is_right(result[name])]
        if "sees_held_out" in wrong:
            raise ValueError("its sees_held_out is not what a run writes")
        if wrong:
            logger.warning("%s: %s: not what a run writes; left out", run_dir / RESULT, ", ".join(wrong))
        found = {name: value for name, value in result.items() if name not in wrong}
        return {"test_result": {}, "best_valid_result": {}, "timings": {}, **found}
    except FileNotFoundError as error:
        raise CheckpointError(f"{run_dir}: no {RESULT}; give the folder of a finished run") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run_dir / RESULT} cannot be read ({error}); run the model again") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _maps_to(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _is_part(value: Any) -> bool:
    """Whether a value is a part of slices: whole numbers of users and targets, and metrics that may have no value."""
    if not _maps_to(lambda number: number is None or _is_number(number))(value):
        return False
    return all(isinstance(value.get(name), int) for name in ("users", "targets"))


_are_numbers = _maps_to(_is_number)
_KINDS_OF_VALUES: Mapping[str, Callable[[Any], bool]] = {
    "test_result": _are_numbers,
    "best_valid_result": _are_numbers,
    "beside": _maps_to(_are_numbers),
    "slices": _maps_to(lambda parts: bool(parts) and _maps_to(_is_part)(parts)),
    "genericness": _maps_to(_are_numbers),
    "sees_held_out": lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    "chosen_on_validation": lambda value: isinstance(value, str),
    "stages": _maps_to(lambda said: _are_numbers(said) and {"seconds", "peak_memory_mb"} <= set(said)),
    "timings": _are_numbers,
    "versions": _maps_to(lambda version: isinstance(version, str)),
}
"""Name in `result.json` -> whether a value is of the kind that `write_result` writes there."""


def write_result(finished: Run, stages: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
    """Write `result.json`, the last file of a run: its presence says that the run is complete.

    Args:
        finished: the run.
        stages: stage -> seconds and memory.
        timings: of training and validation.

    Raises:
        DiskError: it cannot be written.
    """
    config = finished.config
    result = {
        "model": config["model"],
        "dataset": config["dataset"],
        "test_result": {key: float(value) for key, value in finished.test_result.items()},
        "best_valid_result": {key: float(value) for key, value in finished.best_valid_result.items()},
        "seed": config["seed"],
        **({"train_workers": config["train_workers"]} if config["train_workers"] > 1 else {}),
        "sees_held_out": list(finished.sees_held_out),
        **({"beside": finished.beside} if finished.beside else {}),
        **({"chosen_on_validation": finished.chosen} if finished.chosen else {}),
        **({"slices": finished.slices} if finished.slices else {}),
        **({"genericness": finished.genericness} if finished.genericness else {}),
        **({"tokens_per_user": finished.tokens_per_user} if finished.tokens_per_user else {}),
        "protocol": {key: config[key] for key in (*RANKED, "valid_metric")},
        "stages": dict(stages),
        "timings": dict(timings),
        "versions": versions(),
    }
    write_json(finished.run_dir / RESULT, result, indent=2, default=str)
