"""What arrives with data, or with somebody's run folder: it leads nowhere but into its own folder."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import recbole_mm
from recbole_mm.config.data_settings import NOBODY
from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import NOT_FROM_A_RUN
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.images import ZipImages
from recbole_mm.errors import CheckpointError, ConfigError, DataError, ImageError, RecboleMMError
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.generator import Request
from recbole_mm.runs.pretrained_run import read_pretrained_run
from tests.conftest import TOY_SETTINGS

MEANT = "if it is meant, give it on the command line or in a file of --config_files"
OTHER_WAYS = {key: value for key, value in TOY_SETTINGS.items() if key != "image_dir"}


@pytest.fixture
def data(toy_path: Path, tmp_path: Path) -> Path:
    """A copy of `toy` with a neighbour that is none of its business; `data_path` of both."""
    shutil.copytree(toy_path / "toy", tmp_path / "data/toy")
    (tmp_path / "data/private").mkdir()
    shutil.copy(toy_path / "toy/images/i1.png", tmp_path / "data/private/i1.png")
    shutil.copy(toy_path / "toy/text.npy", tmp_path / "data/private/x.npy")
    with zipfile.ZipFile(tmp_path / "data/private/x.zip", "w") as archive:
        archive.write(toy_path / "toy/images/i1.png", "i1.png")
    return tmp_path / "data"


@pytest.fixture
def read(data: Path) -> Callable[..., Config]:
    """`read(yaml, **typed)` -> the config of a dataset that came with this YAML."""

    def build(layer: dict[str, Any], **typed: Any) -> Config:
        (data / "toy/toy.yaml").write_text(yaml.safe_dump(layer))
        return Config("Pop", "toy", config_dict={**OTHER_WAYS, "data_path": str(data), **typed})

    return build


def private(data: Path, name: str) -> dict[str, str]:
    """Ways to say where a neighbour's file is."""
    (data / "toy/link").symlink_to(data / "private")
    return {
        "absolute": str(data / "private" / name),
        "parent": f"../private/{name}",
        "roundabout": f"images/../../private/{name}",
        "home": f"~/{name}",
        "link": f"link/{name}",
        "windows": f"C:\\private\\{name}",
    }


class TestItsOwnYaml:
    @pytest.mark.parametrize("way", ["absolute", "parent", "roundabout", "home", "link", "windows"])
    @pytest.mark.parametrize("key", ["image_dir", "image_zip", "file", "ids"])
    def test_leads_nowhere_else(self, data, read, key, way):
        given = private(data, {"image_dir": ".", "image_zip": "x.zip"}.get(key, "x.npy"))[way]
        layer: dict[str, Any] = {key: given}
        name = key
        if key in ("file", "ids"):
            name = f"item_features.x.{key}"
            layer = {"item_features": {"x": {"file": "text.npy", "ids": "vector_ids.txt", key: given}}}
        with pytest.raises(ConfigError) as error:
            read(layer)
        assert f"toy.yaml: {name}: {given!r} leads out of the dataset's folder" in str(error.value)
        assert MEANT in str(error.value)

    def test_the_same_may_be_typed(self, data, read):
        config = read({"image_dir": "images"}, image_dir=str(data / "private"))
        assert ContentSource.from_config(config).images.has("i1")

    def test_says_what_is_inside(self, data, read):
        spec = {"file": "text.npy", "ids": str(data / "toy/vector_ids.txt")}
        config = read({"image_dir": "images", "item_features": {"x": spec, "y": {"encoder": "mllm"}}})
        assert len(list(ContentSource.from_config(config).images.names())) == 40
        assert set(config["item_features"]) == {"x", "y"}

    @pytest.mark.parametrize("encoder", ["somebody/model", "models/evil", "./encoder"])
    def test_names_no_model(self, read, encoder):
        with pytest.raises(ConfigError, match=r"item_features\.x\.encoder: '.*' names a model, which the data's own"):
            read({"item_features": {"x": {"encoder": encoder, "on": "text"}}})

    @pytest.mark.parametrize(
        "key",
        [
            *("text_url", "text_api_key_env", "text_backend", "text_model", "mllm", "trust_remote_code"),
            *("data_path", "checkpoint_dir", "artifact_dir", "id_model_path", "first_stage_path", "ray_address"),
            *("log_wandb", "dataset_save_path", "dataloaders_save_path", "sentence_encoder", "resume"),
        ],
    )
    def test_names_no_server_model_variable_or_place(self, read, key):
        with pytest.raises(ConfigError, match=f"'{key}' does not describe the data"):
            read({key: "x"})

    @pytest.mark.parametrize(
        ("layer", "shown"),
        [
            ({"load_col": {"inter": ["user_id"], "/../../private/x": ["a"]}}, "load_col: '/../../private/x'"),
            ({"unload_col": {"a\\b": ["a"]}}, "unload_col: 'a\\\\b'"),
            ({"additional_feat_suffix": ["ok", "../x"]}, "additional_feat_suffix: '../x'"),
            ({"additional_feat_suffix": "../x"}, "additional_feat_suffix: '../x'"),
            ({"benchmark_filename": ["train", "/../../private/valid", "test"]}, "'/../../private/valid'"),
        ],
    )
    def test_makes_up_no_path(self, read, layer, shown):
        with pytest.raises(ConfigError, match="is no part of a file's name, which has no separator in it") as error:
            read(layer)
        assert shown in str(error.value)


class TestItsFiles:
    @pytest.mark.parametrize("name", ["toy.inter", "toy.item", "toy.yaml", "toy.extra"])
    def test_are_no_links_out_of_the_folder(self, data, read, name):
        (data / "private" / name).write_text("user_id:token\n")
        (data / "toy" / name).unlink(missing_ok=True)
        (data / "toy" / name).symlink_to(data / "private" / name)
        with pytest.raises(DataError, match=f"{name}: a symbolic link that leaves the dataset's folder"):
            Config("Pop", "toy", config_dict={"data_path": str(data)})

    def test_may_be_links_within_it(self, data):
        (data / "toy/toy.inter").rename(data / "toy/interactions.tsv")
        (data / "toy/toy.inter").symlink_to("interactions.tsv")
        (data.parent / "linked").mkdir()
        (data.parent / "linked/toy").symlink_to(data / "toy")
        for root in (data, data.parent / "linked"):
            assert Config("Pop", "toy", config_dict={"data_path": str(root)})["data_files"]["toy.inter"]

    def test_images_are_no_links_out_of_the_folder(self, data, read, caplog):
        (data / "toy/images/i1.png").unlink()
        (data / "toy/images/i1.png").symlink_to(data / "private/i1.png")
        images = ContentSource.from_config(read({"image_dir": "images"})).images
        assert not images.has("i1")
        assert "symbolic links leave" in caplog.text

    @pytest.mark.parametrize("path", ["/etc/hostname", "../private/i1.png", "link/i1.png", "https://evil/i1.png"])
    def test_a_column_of_images_stays_inside(self, data, read, path):
        (data / "toy/link").symlink_to(data / "private")
        rows = (data / "toy/toy.item").read_text().splitlines()
        rows = [f"{rows[0]}\timage:token", *(f"{row}\timages/i0.png" for row in rows[1:-1]), f"{rows[-1]}\t{path}"]
        (data / "toy/toy.item").write_text("\n".join(rows) + "\n")
        with pytest.raises(DataError, match="item i39: "):
            ContentSource.from_config(read({"image_field": "image"}))

    def test_a_zip_gives_what_its_members_hold(self, data, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../private/i1.png", b"climbs")
            link = zipfile.ZipInfo("i2.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, str(data / "private/i1.png"))
            archive.writestr("i3.png", bytes(65 * 2**20))
        images = ZipImages(tmp_path / "x.zip")
        assert images.read("i1") == b"climbs"
        assert images.read("i2") == str(data / "private/i1.png").encode()
        with pytest.raises(ImageError, match="over the limit"):
            images.read("i3")


class TestRecbolesModels:
    """Some of RecBole's models evaluate a setting, or unpickle a file of the dataset's folder."""

    def test_a_setting_that_is_evaluated_is_a_name(self, data):
        with pytest.raises(ConfigError, match=r"teacher: .* is not accepted; give one of CrossNet, CIN"):
            Config("KD_DAGFM", "toy", config_dict={"data_path": str(data), "teacher": "__import__('os').getcwd()"})

    def test_a_file_of_the_dataset_is_not_unpickled(self, data, tmp_path):
        marker = tmp_path / "code-was-run"

        class Bomb:
            def __reduce__(self):
                return Path.touch, (marker,)

        np.save(data / "toy/item_emb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
        settings = {**TOY_SETTINGS, "data_path": str(data), "checkpoint_dir": str(tmp_path / "saved"), "n_cate": 2}
        with pytest.raises(CheckpointError, match=r"item_emb\.npy: not plain numbers .*; pickles are never loaded"):
            recbole_mm.run("LDiffRec", "toy", config_dict=settings)
        assert not marker.exists()


class TestSomebodysRun:
    @pytest.fixture(scope="class")
    def finished(self, toy_path, tmp_path_factory) -> Path:
        settings = {**TOY_SETTINGS, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path_factory.mktemp("saved"))}
        return recbole_mm.run("Pop", "toy", config_dict=settings).run_dir

    @pytest.fixture
    def evil(self, finished, tmp_path) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        settings |= {"trust_remote_code": True, "ray_address": "ray://evil:10001", "text_backend": "openai"}
        settings |= {"text_model": "m", "text_url": "https://evil/v1", "text_api_key_env": "AWS_SECRET_ACCESS_KEY"}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return folder

    def test_runs_no_code_and_asks_no_server(self, evil):
        loaded = recbole_mm.load(evil)
        assert {key: loaded.config[key] for key in NOT_FROM_A_RUN} == NOT_FROM_A_RUN
        generator = open_generator(loaded.config, lambda: pytest.fail("no model is wanted"))
        assert generator.identity == "openai:m"
        with pytest.raises(
            RecboleMMError, match=r"text_url: 1 texts of m are not in the artifact store.*say which one"
        ):
            list(generator.stream({"a": Request("hello", None)}))

    def test_who_opens_it_may_say_so(self, evil):
        loaded = recbole_mm.load(evil, changed={"text_url": "http://localhost:8000/v1"})
        assert loaded.config["text_url"] == "http://localhost:8000/v1" != NOBODY
        assert loaded.config["text_api_key_env"] is None
        assert loaded.config["trust_remote_code"] is False

    def test_holds_no_pickle(self, evil, finished, tmp_path):
        marker = tmp_path / "code-was-run"

        class Bomb:
            def __reduce__(self):
                return Path.touch, (marker,)

        shutil.copy(finished / "config.yaml", evil / "config.yaml")
        (evil / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
        for load in (recbole_mm.load, lambda folder: read_pretrained_run(folder, Config.load(finished))):
            with pytest.raises(
                CheckpointError, match=r"model\.safetensors: not loaded\. RecBole \.pth files are pickles"
            ):
                load(evil)
        assert not marker.exists()

    def test_evaluates_nothing(self, evil):
        settings = yaml.safe_load((evil / "config.yaml").read_text())
        (evil / "config.yaml").write_text(yaml.safe_dump({**settings, "model": "KD_DAGFM", "teacher": "print(1)"}))
        with pytest.raises(ConfigError, match="teacher: 'print\\(1\\)' is not accepted"):
            recbole_mm.load(evil)

    def test_leads_to_no_linked_data(self, evil, data):
        (data / "toy/toy.inter").rename(data / "private/toy.inter")
        (data / "toy/toy.inter").symlink_to(data / "private/toy.inter")
        settings = yaml.safe_load((evil / "config.yaml").read_text())
        (evil / "config.yaml").write_text(yaml.safe_dump({**settings, "data_path": str(data)}))
        with pytest.raises(DataError, match="a symbolic link that leaves the dataset's folder"):
            recbole_mm.load(evil)
