"""Slices: metrics of parts of the test targets, whose weighted mean is the metric of all."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.resolved import Config
from recbole_mm.config.yaml_settings import read_yaml, write_yaml
from recbole_mm.errors import CheckpointError, ConfigError, DataError
from recbole_mm.evaluation import slice_kinds as kinds_module
from recbole_mm.evaluation.collector import RankingCollector
from recbole_mm.evaluation.per_user import per_user_table, read_per_user
from recbole_mm.evaluation.ranking import CSR, EvalUsers, rank_users
from recbole_mm.evaluation.significance import compare, holm
from recbole_mm.evaluation.slices import Slices, Targets, slice_results
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.slices import slice_tables, write_slices
from recbole_mm.runs.folder import CONFIG, first_run_dir, read_result
from recbole_mm.utils.files import write_json, write_parquet, write_text
from recbole_mm.utils.seal import CHECKSUM
from tests.conftest import TOY_SETTINGS, write_toy
from tests.two_workers import ran, together

USERS, ITEMS = 60, 80
METRICS = ["NDCG", "Recall", "MRR", "Hit", "Precision", "MAP", "GAUC"]
CONFIG_OF_METRICS = {"metrics": METRICS, "topk": [1, 3, 20], "metric_decimal_place": 12}
ALL = ["popularity", "history", "modality", "class", "gender", "age"]


class Random(torch.nn.Module):
    def full_sort_predict(self, interaction):
        return torch.rand((len(interaction), ITEMS), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`data_path` of `toy` with users' genders and ages, a missing image and a missing title."""
    folder = write_toy(tmp_path_factory.mktemp("sliced"))
    root = folder / "toy"
    lines = ["user_id:token\tgender:token\tage:float"]
    lines += [f"u{user}\t{'fm'[user % 2] if user % 10 else ''}\t{20 + user // 3}" for user in range(59)]
    (root / "toy.user").write_text("\n".join(lines) + "\n")
    (root / "images" / "i3.png").unlink()
    text = (root / "toy.item").read_text().replace("i4\tThe action film number 4\taction", "i4\t\taction")
    (root / "toy.item").write_text(text)
    return folder


def settings_on(data, tmp_path, **changes) -> dict:
    return {
        **TOY_SETTINGS,
        **{"data_path": str(data), "checkpoint_dir": str(tmp_path / "saved"), "text_fields": ["title"], "epochs": 1},
        **{"metrics": ["NDCG", "Recall", "MRR", "Hit", "Precision", "MAP"], "slices": ALL, **changes},
    }


def check_weighted_means(result: dict, test_result: dict, cases: int) -> None:
    assert result
    for kind, parts in result.items():
        assert sum(part["weight"] for part in parts.values()) == pytest.approx(cases), kind
        for metric, value in test_result.items():
            by = "targets" if metric == "gauc" else "weight"
            mean = np.average([part[metric] for part in parts.values()], weights=[part[by] for part in parts.values()])
            assert mean == pytest.approx(value, abs=2e-6), (kind, metric)


def test_what_targets_count_adds_up_to_their_cases_and_the_parts_to_the_whole():
    rng = np.random.default_rng(0)
    positives = [rng.choice(np.arange(1, ITEMS), rng.integers(1, 7), replace=False) for _ in range(USERS)]
    users = EvalUsers(Interaction({"user_id": torch.arange(USERS)}), CSR.from_lists(positives), None, np.arange(USERS))
    struct = rank_users(Random(), users, ITEMS, collector=RankingCollector(CONFIG_OF_METRICS, item_num=ITEMS))
    slices = [
        Slices("items", ["a", "b", "c", "empty"], of_items=rng.integers(0, 3, ITEMS)),
        Slices("users", ["a", "b"], of_cases=rng.integers(0, 2, USERS)),
    ]
    table = per_user_table(CONFIG_OF_METRICS, users, struct, slices=slices)
    targets = Targets.of(table)
    assert len(targets.values) == 3 * 6 + 1
    for name, values in targets.values.items():
        sums = np.bincount(targets.cases, weights=targets.weights * values)
        assert sums == pytest.approx(table[name].to_numpy(), abs=1e-12), name
    found = slice_results(table, slices, users, 12)
    check_weighted_means(found, Evaluator(CONFIG_OF_METRICS).evaluate(struct), USERS)
    assert list(found["items"]) == ["a", "b", "c"]
    for code, part in enumerate("abc"):
        ranks = [
            [r for i, r in zip(row["positives"], row["ranks"]) if slices[0].of_items[int(i)] == code]
            for row in table.to_pylist()
        ]
        mine = [np.mean(np.array(row) <= 3) * len(row) / len(all_) for row, all_ in zip(ranks, positives) if row]
        weight = sum(len(row) / len(all_) for row, all_ in zip(ranks, positives))
        assert found["items"][part]["recall@3"] == pytest.approx(sum(mine) / weight)
        assert found["items"][part]["users"] == len(mine)
        assert found["items"][part]["targets"] == sum(map(len, ranks))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("SASRec", {}),
        ("BPR", {"eval_args": {"split": {"RS": [0.5, 0.2, 0.3]}}}),
        ("Pop", {"eval_args": {"mode": "uni20"}, "metrics": ["GAUC", "Hit", "NDCG"]}),
    ],
)
def test_the_parts_of_a_run_are_in_its_folder_and_make_up_its_result(data, tmp_path, model, changes):
    finished = recbole_mm.run(model=model, dataset="toy", config_dict=settings_on(data, tmp_path, **changes))
    result = read_result(finished.run_dir)
    slices = result["slices"]
    assert list(slices) == ["popularity", "history", "image", "text", "item.class", "user.gender", "user.age"]
    table = read_per_user(finished.run_dir)
    check_weighted_means(slices, result["test_result"], len(table))
    assert finished.slices == slices == recbole_mm.load(finished.run_dir).slices
    assert {name for name in table.column_names if name.startswith("slice:")} == {f"slice:{name}" for name in slices}
    assert slices["image"]["missing"]["targets"] == sum(row.count("i3") for row in table["positives"].to_pylist())
    assert list(slices["item.class"]) == list(dict.fromkeys(slices["item.class"]))
    assert "(none)" in slices["user.gender"]


def test_parts_are_those_of_the_data_whatever_the_model(data, tmp_path):
    settings = settings_on(data, tmp_path)
    runs = [recbole_mm.run(model=model, dataset="toy", config_dict=settings) for model in ("SASRec", "Pop")]
    first, second = ({user: row for user, row in by_user(run)} for run in runs)
    assert first == second
    rows = [line.split("\t") for line in (data / "toy" / "toy.inter").read_text().splitlines()[1:]]
    lengths = Counter(row[0] for row in rows)
    held_out = {}
    for user, item, *_ in rows:
        held_out.setdefault(user, []).append(item)
    trained = Counter(item for items in held_out.values() for item in items[:-2])
    for user, parts in first.items():
        item = held_out[user][-1]
        count, known = trained[item], lengths[user] - 1
        assert parts["popularity"] == [
            next(name for name, low in reversed(kinds_module.POPULARITY.items()) if count >= low)
        ]
        assert parts["history"] == [next(name for name, low in reversed(kinds_module.HISTORY.items()) if known >= low)]
        assert parts["text"] == ["missing" if item == "i4" else "present"]
        assert parts["user.gender"] == [
            "(none)" if int(user[1:]) % 10 == 0 or user == "u59" else "fm"[int(user[1:]) % 2]
        ]
    ages = {parts["user.age"][0] for parts in first.values()}
    assert ages == {"to 24", "above 24 to 29", "above 29 to 34", "above 34", "(none)"}


def by_user(run):
    for row in read_per_user(run.run_dir).to_pylist():
        yield row["user_id"], {name.removeprefix("slice:"): row[name] for name in row if name.startswith("slice:")}


def test_several_workers_find_the_same(data, tmp_path):
    settings = settings_on(data, tmp_path)
    alone = recbole_mm.run(model="Pop", dataset="toy", config_dict=settings)
    together(tmp_path, ran, "Pop", settings, tmp_path / "two")
    assert read_result(tmp_path / "two")["slices"] == alone.slices
    assert (tmp_path / "two" / CONFIG).is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("clas", r"slices: 'clas' is none of .*, nor a column of toy\.item or toy\.user; did you mean 'class'\?"),
        ("popularty", "did you mean 'popularity'"),
        ("user.clas", "nor a column of toy.item or toy.user"),
        ("item.gender", "nor a column"),
        (["a"] * 21, "slices: .* is not accepted; give a name or a list of at most 20 names"),
        (3.5, "slices: "),
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_told_before_anything_is_computed(data, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message) as refused:
        recbole_mm.run(model="Pop", dataset="toy", config_dict=settings_on(data, tmp_path, slices=given))
    assert "\n" not in str(refused.value)


def test_columns_of_numbers_are_told_from_columns_of_values(data, tmp_path):
    settings = settings_on(data, tmp_path, slices=["age:token", "user.gender"])
    found = recbole_mm.run(model="Pop", dataset="toy", config_dict=settings).slices
    assert list(found) == ["user.age", "user.gender"]
    assert len(found["user.age"]) <= kinds_module.MOST_VALUES + 1
    assert "(other)" in found["user.age"]
    wrong = settings_on(data, tmp_path, slices=["gender:float"])
    with pytest.raises(
        DataError, match=r"toy.user: column gender: 'm' of 'u\d+' is no number; give the column to slices as"
    ):
        recbole_mm.run(model="Pop", dataset="toy", config_dict=wrong)


def test_a_run_that_reads_no_images_goes_on_where_their_folder_is_gone(data, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    settings = settings_on(data, tmp_path, slices=["modality"], image_dir="gone", state="WARNING")
    found = recbole_mm.run(model="Pop", dataset="toy", config_dict=settings)
    assert found.slices == {}
    assert "slices" not in read_result(found.run_dir)


def test_values_of_a_column_are_bounded_and_numbers_are_cut_at_values():
    texts = ["", *(f"v{place % 30:02d}" for place in range(300)), "v07", "", "x" * 200, "x" * 300]
    parts, codes = kinds_module._by_value(texts)
    assert parts == ["v07", *(f"v{place:02d}" for place in (*range(7), 8)), "(other)", "(none)"]
    assert [parts[code] for code in codes[[8, -4, -3, -2, -1]]] == ["v07", "v07", "(none)", "(other)", "(other)"]
    assert kinds_module._by_value(["", "x" * 90, "x" * 99])[0] == ["x" * 80, "(other)", "(none)"]
    few, of_few = kinds_module._by_value(["", "b", "a", "b", ""])
    assert (few, of_few.tolist()) == (["b", "a", "(other)", "(none)"], [3, 0, 1, 0, 3])
    texts = ["", *["(other)"] * 3, "(none)", *(f"w{place % 20}" for place in range(60)), ""]
    same, of_same = kinds_module._by_value(texts)
    assert same.count("(other)") == same.count("(none)") == 1
    assert [same[code] for code in of_same[[1, 4, -1]]] == ["((other))", "(other)", "(none)"]
    assert {same[code] for code in of_same[5:-1]} == {"w0", "w1", *(f"w{place}" for place in range(10, 16)), "(other)"}
    names, cut = kinds_module._by_number(["", "1", "1", "1", "2", "9", ""], "x", [""] * 7)
    assert names == ["to 1", "above 1 to 2", "above 2", "(none)"]
    assert cut[1:].tolist() == [0, 0, 0, 1, 2, 3]
    assert kinds_module._by_number(["", "", ""], "x", [""] * 3)[1].tolist() == [2, 2, 2]


def test_slices_make_no_other_run(data, tmp_path):
    one, other = (Config("Pop", "toy", config_dict=settings_on(data, tmp_path, slices=given)) for given in (ALL, []))
    assert first_run_dir(one) == first_run_dir(other)


# ---- compare ----


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    """Folders of finished runs, Pop and SASRec with two seeds each, copied to where they were not made."""
    folder = tmp_path_factory.mktemp("compared")
    settings = settings_on(data, folder, metrics=["NDCG", "Recall"])
    runs = []
    for model in ("Pop", "SASRec"):
        for seed in (1, 2):
            made = recbole_mm.run(model=model, dataset="toy", config_dict={**settings, "seed": seed})
            runs.append(folder / "elsewhere" / f"{model}{seed}")
            shutil.copytree(made.run_dir, runs[-1])
    shutil.rmtree(folder / "saved")
    return runs


def test_tables_of_slices_are_of_the_runs_and_their_tests_of_the_users_of_each_part(compared, tmp_path):
    table = compare_finished(compared, metrics=["NDCG@10", "Recall@5"])
    assert [line.row.name for line in table.lines] == ["Pop", "SASRec"]
    assert len(slice_tables(table, ["all"])) == 7
    by_class, by_image = slice_tables(table, ["item.class", "image"])
    for found in (by_class, by_image):
        assert found.metrics == ["NDCG@10", "Recall@5"]
        results = {folder.name: read_result(folder)["slices"][found.name] for folder in compared}
        for line in found.lines:
            mine = [results[f"{line.row}{seed}"][line.part] for seed in (1, 2)]
            assert (line.users, line.targets) == (mine[0]["users"], mine[0]["targets"])
            assert line.cells["Recall@5"].mean == pytest.approx(np.mean([run["recall@5"] for run in mine]))
            assert (line.cells["NDCG@10"].test is None) == (line.row == "Pop" or line.users < 2)
    (mine,) = [line for line in by_class.lines if (line.row, line.part) == ("SASRec", "comedy")]
    values = {}
    for folder in compared:
        per_user = read_per_user(folder).to_pandas().set_index("user_id").sort_index()
        kept = per_user["slice:item.class"].str[0] == "comedy"
        values.setdefault(folder.name[:-1], []).append(per_user.loc[kept, "ndcg@10"])
    expected = compare(sum(values["Pop"]) / 2, sum(values["SASRec"]) / 2, seed=0)
    assert mine.cells["NDCG@10"].test == expected
    tests = [line.cells["NDCG@10"] for line in by_class.lines if line.row == "SASRec" and line.users > 1]
    assert [cell.p_holm for cell in tests] == holm([cell.test.p_value for cell in tests])
    write_slices([by_class, by_image], tmp_path)
    text = (tmp_path / "slices.md").read_text()
    assert "## By item.class" in text
    assert "| NDCG@10  | comedy" in text
    lines = list(csv.DictReader((tmp_path / "slices.csv").open()))
    assert len(lines) == 2 * (len(by_class.lines) + len(by_image.lines))
    assert {line["reference"] for line in lines} == {"Pop"}


def test_the_command_prints_tables_of_slices(compared, tmp_path, capsys):
    arguments = ["compare", "--slices=popularity", "--show=NDCG@10", f"--out={tmp_path}", "--runs", *map(str, compared)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "## By popularity" in said
    assert "slices.md, slices.csv" in said
    assert main(["compare", "--slices=popularty", "--runs", *map(str, compared)]) == 2
    assert "--slices: Pop has no slices 'popularty'; did you mean 'popularity'?" in capsys.readouterr().err


def test_runs_without_slices_are_named(compared, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(compared[2], old)
    result = json.loads((old / "result.json").read_text())
    write_json(old / "result.json", {key: value for key, value in result.items() if key not in ("slices", CHECKSUM)})
    config = read_yaml(old / CONFIG)
    write_text(old / CONFIG, write_yaml({**config, "data_path": str(tmp_path / "gone")}))
    table = compare_finished([*compared[:2], old], metrics=["NDCG@10"])
    (found,) = slice_tables(table, ["history"])
    (note,) = found.notes
    assert re.fullmatch(r"SASRec: no slices by history: .*: toy\.\w+ has changed since, or is gone", note)
    assert {line.row for line in found.lines} == {"Pop"}
    alone = compare_finished([old], metrics=["NDCG@10"])
    with pytest.raises(ConfigError, match=r"--slices: SASRec has none, and its settings cannot be read here: "):
        slice_tables(alone, ["all"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slices", ["popularity"]),
        ("slices", {"popularity": {"1-4": {"users": "many", "targets": 3}}}),
        ("slices", {"popularity": {"1-4": {"users": 3, "targets": 3, "ndcg@10": "high"}}}),
        ("slices", {"popularity": {"1-4": {"ndcg@10": 0.5}}}),
        ("test_result", {"ndcg@10": "0.5"}),
        ("test_result", 0.5),
        ("best_valid_result", None),
        ("timings", {"epochs": "4"}),
        ("stages", {"training": {}}),
        ("beside", {"Pop": 3}),
    ],
)
def test_of_results_of_others_is_read_what_a_run_writes(compared, tmp_path, caplog, name, value):
    theirs = tmp_path / "theirs"
    shutil.copytree(compared[1], theirs)
    result = read_result(compared[1])
    write_json(theirs / "result.json", {**result, name: value})
    read = read_result(theirs)
    assert not read.get(name)
    assert {key: read[key] for key in result if key != name} == {key: result[key] for key in result if key != name}
    assert caplog.messages == [f"{theirs / 'result.json'}: {name}: not what a run writes; left out"]
    if name == "slices":
        tables = [slice_tables(compare_finished([compared[0], one]), ["popularity"]) for one in (theirs, compared[1])]
        assert tables[0] == tables[1], "cut from its results per user"


def test_results_that_do_not_say_what_training_saw_are_refused(compared, tmp_path):
    shutil.copytree(compared[0], tmp_path / "theirs")
    write_json(tmp_path / "theirs" / "result.json", {**read_result(compared[0]), "sees_held_out": "nothing"})
    with pytest.raises(CheckpointError, match=r"cannot be read \(its sees_held_out is not what a run writes\)"):
        read_result(tmp_path / "theirs")


def test_slices_that_a_folder_lacks_are_cut_from_its_results(compared, data, tmp_path):
    """They are those that the run would have had, to the last digit, tests included."""
    plain = [tmp_path / folder.name for folder in compared]
    for old, folder in zip(plain, compared, strict=True):
        shutil.copytree(folder, old)
        result = json.loads((old / "result.json").read_text())
        plain_result = {name: value for name, value in result.items() if name not in ("slices", CHECKSUM)}
        write_json(old / "result.json", plain_result)
        per_user = read_per_user(old)
        kept = [name for name in per_user.column_names if not name.startswith("slice:")]
        write_parquet(old / "per_user.parquet", per_user.select(kept))
    wanted = slice_tables(compare_finished(compared, metrics=["NDCG@10"]), ["all"])
    table = compare_finished(plain, metrics=["NDCG@10"])
    assert slice_tables(table, ["all"]) == wanted
    (by_class,) = slice_tables(table, ["class"])
    assert by_class == next(found for found in wanted if found.name == "item.class")
    assert not read_result(plain[0]).get("slices"), "the folder of a finished run stays as it is"


def test_runs_of_an_experiment_have_the_slices_that_are_named(data, tmp_path, capsys):
    write_text(tmp_path / "settings.yaml", write_yaml(settings_on(data, tmp_path, slices=[], metrics=["NDCG"])))
    rows = [{"name": model, "model": model} for model in ("Pop", "ItemKNN")]
    two = {"title": "Two", "metrics": ["NDCG@10"], "reference": "Pop", "rows": rows}
    write_text(tmp_path / "two.yaml", write_yaml(two))
    arguments = ["compare", f"--experiment={tmp_path / 'two.yaml'}", "--dataset=toy", "--seeds=1"]
    arguments.append(f"--config_files={tmp_path / 'settings.yaml'}")
    assert main([*arguments, "--slices=popularty"]) == 2
    assert "slices: 'popularty' is none of popularity" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists(), "nothing was run"
    assert main([*arguments, "--slices=item.class"]) == 0
    assert "## By item.class" in capsys.readouterr().out
    for folder in (tmp_path / "saved").glob("*-toy-*"):
        assert list(read_result(folder)["slices"]) == ["item.class"]
    assert main([*arguments, "--slices=popularity"]) == 0
    assert "## By popularity" in capsys.readouterr().out, "of finished runs, which are not run again"


def test_runs_of_others_on_other_data_or_by_another_protocol_are_refused(compared, data, tmp_path):
    other = write_toy(tmp_path, seed=8)
    settings = settings_on(other, tmp_path, metrics=["NDCG", "Recall"], slices=[])
    foreign = recbole_mm.run(model="Pop", dataset="toy", config_dict=settings).run_dir
    with pytest.raises(
        DataError, match=r"are of other data: toy\.inter, toy\.item, toy\.user differ; compare runs"
    ) as no:
        compare_finished([compared[0], foreign])
    assert "\n" not in str(no.value)
    unmasked = {**settings_on(data, tmp_path, metrics=["NDCG", "Recall"]), "mask_history": False}
    foreign = recbole_mm.run(model="Pop", dataset="toy", config_dict=unmasked).run_dir
    with pytest.raises(
        DataError, match=r"by another protocol than .*: mask_history is False, not True; compare runs of"
    ):
        compare_finished([compared[0], foreign])


def test_where_a_run_was_made_makes_no_row_of_its_own(compared, tmp_path):
    for place, changes in enumerate(({"eval_batch_size": 7, "use_gpu": True, "data_path": "/else/where"}, {})):
        shutil.copytree(compared[place], tmp_path / f"{place}")
        config = read_yaml(tmp_path / f"{place}" / CONFIG)
        write_text(tmp_path / f"{place}" / CONFIG, write_yaml({**config, **changes}))
    table = compare_finished([tmp_path / "0", tmp_path / "1"])
    assert [sorted(line.row.runs) for line in table.lines] == [[1, 2]]


def test_rows_are_told_apart_by_what_plays_a_part(compared, tmp_path):
    for place, changes in enumerate((
        {"mllm": "a/model", "text_model": "another", "item_features": {"text": {"file": "text.npy"}}},
        {"seed": 2, "mllm": "tiny"},
        {"seed": 3, "train_neg_sample_args": {"distribution": "none", "alpha": 0.25}},
    )):  # fmt: skip
        shutil.copytree(compared[2], tmp_path / f"{place}")
        config = read_yaml(tmp_path / f"{place}" / CONFIG)
        write_text(tmp_path / f"{place}" / CONFIG, write_yaml({**config, **changes}))
    table = compare_finished([tmp_path / "0", tmp_path / "1", tmp_path / "2"], metrics=["NDCG@10"])
    assert [sorted(line.row.runs) for line in table.lines] == [[1, 2], [3]]
    assert "train_neg_sample_args.alpha=0.25" in table.lines[1].row.name
    assert "mllm" not in table.lines[0].row.name
    assert "{" not in "".join(line.row.name for line in table.lines)
