"""Inputs drawn at random, ordinary and hostile: each is read as it was meant, or refused in one line.

200 cases by default, 2,000 with `-m slow`; the same ones in every run.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recbole_mm
from recbole_mm.config.layers import properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import SETTINGS
from recbole_mm.config.yaml_settings import SettingsDumper, write_yaml
from recbole_mm.data.atomic import SEQUENCES, read_atomic, split_sequences
from recbole_mm.errors import RecboleMMError
from recbole_mm.experiments.compare.experiment import Experiment, load_experiment
from recbole_mm.experiments.tune.space import parse_space, read_space
from recbole_mm.utils.escaping import one_line
from tests import reference_reader
from tests.conftest import write_toy

LONGEST_LINE = 1000
"""Characters of a refusal that somebody may still read."""

cases = pytest.mark.parametrize(
    "count", [pytest.param(1, id="few"), pytest.param(10, id="many", marks=pytest.mark.slow)]
)
"""How many times the number of cases that a test names."""


def check_each(strategy: st.SearchStrategy, count: int, check: Callable[[Any], None]) -> None:
    """Call `check` on `count` drawings of `strategy`; a failure shows the smallest one found."""
    options = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    options(given(strategy)(lambda drawn: check(drawn)))()


def refusal(error: RecboleMMError) -> str:
    """The text of a refusal, which must be one readable line."""
    text = str(error)
    assert text.strip(), "a refusal says nothing"
    assert text.splitlines() == [text], f"a refusal of several lines: {text!r}"
    assert len(text) < LONGEST_LINE, f"a refusal of {len(text)} characters: {text[:200]!r}"
    assert text == one_line(text), f"a refusal with control characters: {text!r}"
    return text


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the text of its refusal; anything else that it raises is a failure."""
    try:
        return call()
    except RecboleMMError as error:
        return refusal(error)


# ---- values that people and programs write ----

WORDS = (
    *("", " ", "~", "null", "None", "True", "on", "1", "01", "1.0", "1e3", ".5", "nan", ".nan", "inf", "-1", "0x10"),
    *("[", "[1,2", "{a: 1}", "a: b", "a,b", "*a", "&a", "!!python/name:os.system", "=1+1", "~/x", "../x", "/", "%s"),
    *("\\", "train", "user_id", "NDCG@10", "image", "${x}", "x" * 300),
    *("é", "e\u0301", "\u202e", "\U0001f600", "\x00", "\x1b[2J"),
)
NUMBERS = (0, 1, -1, 2, 255, 256, -(2**63), 10**12, 10**30, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e300)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from((math.nan, math.inf, -math.inf)),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal and of one kind; a number is one of its own, however it is written."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and bool(left == right)


# ---- atomic files ----

TOKENS = ("a", "b", "é", "", " x ", '"q', "NA", "null", "#", "1.0", "\x85", "\u2028", "\ufeff", "\U0001d4b3", "=1")
DIGITS = (
    "5",
    "5.5",
    "",
    " 5 ",
    "1e5",
    "-3",
    "1",
    "0",
    ".5",
    "9007199254740993",
    "1700000000.123456",
    "3.0000000000000004441",
)
NO_DIGITS = ("nan", "inf", "True", "1_0", "1e400", "0x1", "  ", "٣", "9" * 30)
FIELDS = {
    "token": st.sampled_from(TOKENS) | st.text(max_size=3),
    "token_seq": st.lists(st.sampled_from(TOKENS), max_size=3).map(" ".join),
    "float": st.sampled_from(DIGITS * 4 + NO_DIGITS),
    "float_seq": st.lists(st.sampled_from(DIGITS * 4 + NO_DIGITS), max_size=3).map(" ".join),
}
DAMAGE = (b"\r", b"\n", b"\0", b"\t", b",", b"\xff", b"\xef\xbb\xbf", b"\x1a", b"")


@st.composite
def atomic_files(draw: st.DrawFn) -> tuple[bytes, str, str | None]:
    """A file, perhaps damaged, its separator and its encoding."""
    separator = draw(st.sampled_from(["\t", ",", "::", " ", "¦"]))
    encoding = draw(st.sampled_from([None, None, "utf-8-sig", "utf-16", "latin-1"]))
    kinds = draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=4))
    lines = [separator.join(f"c{place}:{kind}" for place, kind in enumerate(kinds))]
    lines += draw(st.lists(st.tuples(*(FIELDS[kind] for kind in kinds)).map(separator.join), max_size=5))
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["\n", "\n", ""]))
    data = text.encode(encoding or "utf-8", errors="replace")
    for where, cut, new in draw(
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from(DAMAGE)), max_size=2)
    ):
        at = int(where * len(data))
        data = data[:at] + new + data[at + cut :]
    return data, separator, encoding


@cases
def test_an_atomic_file_is_read_as_a_slow_reader_reads_it(count, tmp_path):
    """The same names, types and values, or refused by both, with the line."""
    path = tmp_path / "drawn.inter"

    def check(drawn: tuple[bytes, str, str | None]) -> None:
        data, separator, encoding = drawn
        path.write_bytes(data)
        read = outcome(lambda: read_all(path, separator, encoding))
        expected = read_slowly(path, separator, encoding)
        if isinstance(expected, reference_reader.Refused):
            assert isinstance(read, str), f"read as {read}, though {expected}"
            assert "line" in read or "empty" in read
        else:
            assert read == expected

    check_each(atomic_files(), 40 * count, check)


def read_slowly(path: Path, separator: str, encoding: str | None) -> Any:
    """What the slow reader reads, or its refusal."""
    try:
        return reference_reader.read(path, separator, encoding)
    except reference_reader.Refused as refused:
        return refused


def read_all(path: Path, separator: str, encoding: str | None) -> tuple[list[str], list[str], list[list]]:
    """Our reader in the form of the slow one."""
    table, kinds = read_atomic(path, separator, lambda name: True, encoding)
    columns = []
    for name, kind in kinds.items():
        if kind in SEQUENCES:
            columns.append([row.tolist() for row in split_sequences(path, table[name], kind, " ")])
        else:
            columns.append([None if value != value else value for value in table[name].tolist()])
    return list(kinds), [kind.value for kind in kinds.values()], [list(row) for row in zip(*columns)]


# ---- settings ----

RESOLVED = {"data_path", "eval_args", "gpu_id", "metrics", "topk", "load_col", "train_neg_sample_args"}
"""Settings that a configuration holds in a form of its own."""

SIZES = {"embedding_size": 8, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1}
SMALL = {**SIZES, "epochs": 1, "show_progress": False, "state": "ERROR"}
UNTRIED = {"checkpoint_dir", "resume", "train_workers", "ray_address", "log_wandb", "log_mlflow"}
"""Settings that would lead a run elsewhere."""


@pytest.fixture(scope="module")
def data_path(tmp_path_factory) -> str:
    """`data_path` of a dataset of twelve users."""
    return str(write_toy(tmp_path_factory.mktemp("fuzz"), users=12, items=10))


def keys_of(model: str, data_path: str) -> list[str]:
    """Every setting that a model's defaults hold, and those that all models share, without those that name the run."""
    defaults = Config(model, "toy", config_dict={"data_path": data_path})
    return sorted({*SETTINGS, *defaults.final_config_dict} - {"data_path", "model", "dataset"})


@cases
def test_a_setting_is_taken_as_it_is_given_or_refused(count, data_path, tmp_path):
    """The same from Python, on the command line and from the file that a run leaves."""

    def check(drawn: tuple[str, str, Any]) -> None:
        model, key, value = drawn
        here = {"data_path": data_path}
        config = outcome(lambda: Config(model, "toy", config_dict={**here, key: value}))
        if not isinstance(config, Config):
            return
        if key not in RESOLVED and key in config.external_config_dict:
            found = config.as_dict()[key]
            one = isinstance(value, str) and same(found, [value])  # of a list of names, one may be given alone
            assert one or same(found, value), f"{key}: {value!r} became {found!r}"
        config.save(tmp_path / "config.yaml")
        again = Config.load(tmp_path / "config.yaml").as_dict()
        for name, saved in config.as_dict().items():
            assert same(again[name], saved), f"{name}: {saved!r} is {again[name]!r} when it is read again"
        if isinstance(value, str):
            return  # a text is typed as it stands, or with quotes
        written = yaml.dump(value, Dumper=SettingsDumper, default_flow_style=True, width=10**6, allow_unicode=True)
        written = written.removesuffix("...\n").strip()
        typed = outcome(lambda: Config(model, "toy", config_dict=here, command_line={key: written}))
        assert isinstance(typed, Config), f"--{key}={written} is refused: {typed}"
        kept, found = typed.as_dict().get(key), config.as_dict().get(key)  # what follows from others may be left out
        assert same(kept, found), f"--{key}={written} became {kept!r}"

    drawn = st.sampled_from(["SASRec", "BPR", "Molar", "MLLMRec", "FREEDOM"]).flatmap(
        lambda model: st.tuples(st.just(model), st.sampled_from(keys_of(model, data_path)), values)
    )
    check_each(drawn, 40 * count, check)


@cases
def test_a_run_ends_with_its_metrics_or_with_one_line(count, data_path, tmp_path):
    """Values that are small enough to be tried."""
    small = [value for value in (*WORDS, *NUMBERS) if isinstance(value, str) or abs(value) < 300]
    small += [None, True, False, math.nan, [], [1], {}, ["x"], "none", "timestamp", [0.5, 0.5]]
    place = itertools.count()

    def check(drawn: tuple[str, str, Any]) -> None:
        model, key, value = drawn
        given = {**SMALL, "data_path": data_path, "checkpoint_dir": str(tmp_path / str(next(place))), key: value}
        ran = outcome(lambda: recbole_mm.run(model, "toy", config_dict=given))
        if isinstance(ran, str):
            return
        assert ran.test_result, f"{model} with {key}: {value!r} has no result"
        assert all(map(math.isfinite, ran.test_result.values())), f"{model} with {key}: {value!r}: {ran.test_result}"

    drawn = st.sampled_from(["SASRec", "BPR", "GRU4Rec", "LightGCN", "Pop"]).flatmap(
        lambda model: st.tuples(
            st.just(model), st.sampled_from(sorted({*keys_of(model, data_path)} - UNTRIED)), st.sampled_from(small)
        )
    )
    check_each(drawn, 20 * count, check)


# ---- experiments ----

EXPERIMENT: dict[str, Any] = {
    "title": "Small models",
    "metrics": ["NDCG@10", "Recall@5"],
    "variables": {"width": 8},
    "settings": {"epochs": 1, "embedding_size": "${width}"},
    "rows": [
        {"name": "Pop", "model": "Pop", "tuning": [{}, {"x": 1}]},
        {"name": "BPR", "model": "BPR", "tuning": {"learning_rate": [0.1, 0.01]}},
    ],
}


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place within nested lists and mappings."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in inside for place in ((*at, key), *places(entry, (*at, key)))]


def replaced(value: Any, at: tuple, new: Any) -> Any:
    """A copy with `new` at a place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], new)
    return copy


def combinations(tuning: Any) -> list[dict[str, Any]]:
    """The trials of a row, plainly."""
    if isinstance(tuning, list):
        return [trial or {} for trial in tuning] or [{}]
    trials: list[dict[str, Any]] = [{}]
    for key, options in (tuning or {}).items():
        trials = [{**trial, key: option} for trial in trials for option in options]
    return trials


@cases
def test_an_experiment_holds_what_its_file_says_or_is_refused(count, tmp_path):
    path = tmp_path / "drawn.yaml"

    def check(drawn: tuple[tuple, Any]) -> None:
        content = replaced(EXPERIMENT, *drawn)
        path.write_text(write_yaml(content), encoding="utf-8")
        found = outcome(lambda: load_experiment(str(path)))
        if not isinstance(found, Experiment):
            return
        assert [(row.name, row.model) for row in found.rows] == [(row["name"], row["model"]) for row in content["rows"]]
        assert found.metrics == content["metrics"]
        for row, written in zip(found.rows, content["rows"], strict=True):
            wanted = combinations(written.get("tuning", content.get("tuning")))
            assert len(row.trials) == len(wanted)
            if "${" not in json.dumps(wanted, default=str):
                assert all(map(same, row.trials, wanted)), f"{row.name}: {wanted} became {row.trials}"

    drawn = st.tuples(st.sampled_from(places(EXPERIMENT)), values)
    check_each(drawn, 30 * count, check)


@cases
def test_a_shipped_file_that_was_cut_or_overwritten_is_read_or_refused(count, tmp_path):
    """Experiments and spaces whose text has lost, gained or changed a few characters."""
    files = sorted((properties_dir() / "experiments").glob("*.yaml")) + sorted(
        (properties_dir() / "search").glob("*.yaml")
    )
    path = tmp_path / "drawn.yaml"

    def check(drawn: tuple[Path, list[tuple[float, int, str]]]) -> None:
        file, changes = drawn
        text = file.read_text(encoding="utf-8")
        for where, cut, new in changes:
            at = int(where * len(text))
            text = text[:at] + new + text[at + cut :]
        path.write_text(text, encoding="utf-8", newline="")
        outcome(lambda: load_experiment(str(path)) if file.parent.name == "experiments" else read_space(path))

    inserted = st.sampled_from(
        [*WORDS, "\t", "\n", "\r", ":", "- ", "  ", "[", "]", "{", "}", "#", "'", '"', "|", ">", "<<: *a"]
    )
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 0, 1, 5, 400]), inserted)
    check_each(st.tuples(st.sampled_from(files), st.lists(change, min_size=1, max_size=3)), 20 * count, check)


# ---- spaces ----


@cases
def test_what_a_space_draws_is_what_its_file_names_or_the_file_is_refused(count, tmp_path):
    path = tmp_path / "drawn.yaml"

    def check(drawn: dict[str, Any]) -> None:
        path.write_text(write_yaml(drawn), encoding="utf-8")
        space = outcome(lambda: read_space(path))
        if isinstance(space, str):
            return
        assert list(space.ranges) == list(drawn)
        again = parse_space(space.as_dict(), "again")
        assert again.ranges == space.ranges or "nan" in str(drawn)
        for point in space.points(seed=1, count=4):
            for key, value in space.settings(point).items():
                ((kind, given_values),) = drawn[key].items()
                if kind == "choice":
                    assert isinstance(given_values, list)
                    assert any(same(value, option) for option in given_values), (
                        f"{value!r} is not among {given_values!r}"
                    )
                else:
                    low, high = given_values
                    assert low <= value <= high
                    assert kind != "randint" or type(value) is int

    numbers = st.lists(st.sampled_from(NUMBERS) | st.floats(-10, 10), min_size=1, max_size=3)
    kinds = st.sampled_from(["choice", "choice", "uniform", "loguniform", "randint", "normal"])
    ranges = st.dictionaries(kinds, values | numbers, min_size=1, max_size=1) | values
    check_each(st.dictionaries(st.sampled_from(["a", "b", "learning_rate"]), ranges, max_size=2), 20 * count, check)


@cases
def test_a_line_of_recboles_is_read_as_python_reads_it_or_refused(count, tmp_path):
    path = tmp_path / "hyper.test"

    def check(drawn: tuple[str, Any]) -> None:
        kind, value = drawn
        path.write_text(f"k {kind} {value!r}\n", encoding="utf-8")
        space = outcome(lambda: read_space(path))
        if isinstance(space, str) or kind != "choice":
            return
        assert isinstance(value, (list, tuple))
        texts = [option for option in value if isinstance(option, str) and option.strip().startswith("[")]
        wanted = [option for option in value if option not in texts]
        found = [option for option in space.ranges["k"].values]
        assert len(found) == len(value)
        assert texts or all(same(a, list(b) if isinstance(b, tuple) else b) for a, b in zip(found, wanted))

    drawn = st.tuples(st.sampled_from(["choice", "uniform", "loguniform", "randint", "x"]), values)
    check_each(drawn, 10 * count, check)
