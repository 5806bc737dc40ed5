"""Every YAML of `properties/dataset` loads, says how to run it, and holds nothing but settings that something reads."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest
import yaml
from recbole.utils.argument_list import dataset_arguments

from recbole_mm.config.layers import properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import SETTINGS
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.data.dataset import create_dataset
from recbole_mm.datasets import CONVERTERS
from recbole_mm.errors import DataError
from recbole_mm.registry import find_model

FILES = sorted((properties_dir() / "dataset").glob("*.yaml"))
NAMES = {
    "amazon-baby",
    "amazon-beauty",
    "amazon-clothing",
    "amazon-games",
    "amazon-sports",
    "hm",
    "hm-week",
    "microlens",
    "microlens-50k",
    "ml-100k",
    "ml-100k-mm",
    "ml-1m",
    "ml-1m-mm",
    "pixelrec",
}
KNOWN = {*dataset_arguments, *SETTINGS, "selected_features", "item_attribute", "source_url", "prepare_hint"}


def test_they_are_all_there():
    assert {path.stem for path in FILES} >= NAMES


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
class TestEveryFile:
    def test_loads_safely_and_alike_with_both_loaders(self, path):
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(plain, dict)
        assert plain == read_yaml(path)

    def test_keys_are_known(self, path):
        assert set(read_yaml(path)) <= KNOWN

    def test_opens_with_the_command_that_runs_it(self, path):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        match = re.fullmatch(r"# python run_recbole_mm.py --model=(\w+) --dataset=([\w-]+)", first)
        assert match, first
        assert match[2] == path.stem
        assert find_model(match[1]).name == match[1]

    def test_every_setting_is_explained(self, path):
        described = ("source_url", "prepare_hint")
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"[A-Za-z_]+:", line) and not line.startswith(described):
                assert re.search(r" # \((str|list|dict)\) \S", line), line

    def test_says_where_the_data_comes_from(self, path):
        settings = read_yaml(path)
        assert settings["source_url"].startswith("https://")
        for key in ("source_url", "prepare_hint"):
            assert "\n" not in settings[key]
        assert f"dataset/{path.stem}" in settings["prepare_hint"]

    def test_prepare_lines_are_commands_that_exist(self, path):
        text = path.read_text(encoding="utf-8")
        lines = re.findall(r"^#\s+recbole-mm prepare (.*)$", text, re.M)
        hint = re.search(r"recbole-mm prepare (.*)$", read_yaml(path)["prepare_hint"])
        if hint:
            lines.append(hint[1])
        assert lines or path.stem.startswith("amazon-")
        for line in lines:
            converter, *arguments = shlex.split(re.sub(r"[][<>]", "", line))
            parser = argparse.ArgumentParser(exit_on_error=False)
            parser.add_argument("--source", required=True)
            parser.add_argument("--out", required=True)
            CONVERTERS[converter].add_arguments(parser)
            assert parser.parse_args(arguments).out == f"dataset/{path.stem}"

    def test_content_settings_fit_together(self, path):
        settings = read_yaml(path)
        assert settings["text_fields"]
        has_images = settings["image_dir"] is not None or path.stem == "ml-100k"
        assert settings["modalities"] == (["image", "text"] if has_images else ["text"])
        if "item" in settings["load_col"]:
            assert set(settings["selected_features"]) <= set(settings["load_col"]["item"])
        columns = {settings["USER_ID_FIELD"], settings["ITEM_ID_FIELD"], settings["TIME_FIELD"]}
        assert columns <= set(settings["load_col"]["inter"])

    def test_is_a_layer_of_the_config(self, path):
        config = Config("SASRecF", path.stem)
        for key, value in read_yaml(path).items():
            if key != "load_col":
                assert config[key] == value, key
        assert config["load_col"]["inter"] == read_yaml(path)["load_col"]["inter"]


@pytest.mark.parametrize("name", sorted(NAMES - {"ml-100k"}))  # ml-100k comes with RecBole
def test_missing_files_say_where_to_get_them(name, tmp_path):
    config = Config("SASRec", name, config_dict={"data_path": str(tmp_path)})
    with pytest.raises(DataError) as caught:
        create_dataset(config)
    settings = read_yaml(properties_dir() / "dataset" / f"{name}.yaml")
    assert settings["source_url"] in str(caught.value)
    assert settings["prepare_hint"] in str(caught.value)
    assert "\n" not in str(caught.value)
