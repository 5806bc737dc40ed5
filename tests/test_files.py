"""Files whole or not at all, checksums, leftovers of killed processes, and disks that give up."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from recbole_mm.config.yaml_settings import SEAL_LINE, read_yaml
from recbole_mm.distributed import cluster
from recbole_mm.distributed.cluster import _folder_of_ray
from recbole_mm.errors import ConfigError, DiskError
from recbole_mm.training.checkpoint import load_tree, save_tree
from recbole_mm.training.tracking import TensorBoard
from recbole_mm.utils import files
from recbole_mm.utils.file_lock import holders, locked
from recbole_mm.utils.files import (
    CHECKSUMS,
    DRAFT,
    atomic_write,
    check_checksums,
    disk_errors,
    make_folder,
    read_json,
    read_parquet,
    remove_leftovers,
    scratch_folder,
    write_checksums,
    write_json,
    write_parquet,
    write_text,
)
from recbole_mm.utils.log import close_logging, init_logging
from recbole_mm.utils.seal import UNSEALED, ChecksumError


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def stops_half_way() -> None:
        with atomic_write(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stops_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_writer_may_replace_its_draft_and_others_may_read_what_comes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    before = os.umask(0o022)
    try:
        with atomic_write(path) as draft:
            other = draft.with_name("random name")
            other.write_text("new")
            other.chmod(0o600)
            other.rename(draft)
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(files, "_sync", full_disk)
    with pytest.raises(DiskError, match=r"a\.json: cannot be written: No space left on device$"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the block the system takes no more than `size` bytes of a file: as a full disk, for root, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_tokenizer(path: Path) -> None:
    Tokenizer(WordLevel({f"word {number}": number for number in range(100)}, "word 0")).save(str(path))


LIBRARIES = {
    "safetensors": lambda path: save_file({"w": torch.ones(1000)}, path),
    "tokenizers": save_tokenizer,
    "torch": lambda path: torch.save({"w": torch.ones(100_000)}, path),
    "pyarrow": lambda path: write_parquet(path, pa.table({"a": list(range(1000))})),
    "pillow": lambda path: Image.effect_noise((64, 64), 9).save(path, "PNG"),
    "json": lambda path: write_json(path, {"a": list(range(1000))}),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_that_say_in_their_own_way_that_a_disk_is_full(tmp_path: Path, library: str) -> None:
    with files_of_at_most(100), pytest.raises(DiskError) as caught, disk_errors(tmp_path / "place"):
        LIBRARIES[library](tmp_path / "place")
    reason = "(File too large|the disk did not take all of it; it may be full)"
    assert re.fullmatch(f".*place: cannot be written: {reason}", str(caught.value))


def test_other_errors_pass_as_they_are() -> None:
    for error in (ValueError("a"), RuntimeError("b"), ConfigError("c")):
        with pytest.raises(type(error), match=str(error)), disk_errors("place"):
            raise error


def test_a_file_in_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file/a/b: cannot be written: (Not a directory|File exists)"):
        make_folder(tmp_path / "file" / "a" / "b")
    with pytest.raises(DiskError, match=r"file: cannot be written: Not a directory"):
        write_text(tmp_path / "file" / "a", "text")


# --- leftovers -------------------------------------------------------------------------------------------------------

HOLDING = """
import sys, time
from pathlib import Path
from recbole_mm.utils.files import scratch_folder
from recbole_mm.utils.file_lock import locked
with locked(Path(sys.argv[1]) / "model", "making"), scratch_folder(Path(sys.argv[1]), ".tiny-") as folder:
    (folder / "half").write_text("x")
    print(folder.name, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(tmp_path: Path, caplog) -> None:
    (tmp_path / "tiny-model").mkdir()
    (tmp_path / ".tiny-model.other").touch()
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        with scratch_folder(tmp_path, ".tiny-") as mine:
            remove_leftovers(tmp_path, ".tiny-")
            assert (tmp_path / name / "half").is_file(), "its process is at work"
            assert mine.is_dir()
        assert not mine.exists()
        assert holders(tmp_path / ".model.lock") == f"process {process.pid}"
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / name).is_dir()
    remove_leftovers(tmp_path, ".tiny-")
    assert holders(tmp_path / ".model.lock") == "another process"
    with locked(tmp_path / "model", "making"):
        assert (tmp_path / ".model.lock").exists()
    assert sorted(os.listdir(tmp_path)) == [".tiny-model.other", "tiny-model"]


def swept_once_made(times: int) -> Callable[..., str]:
    """`mkdtemp` with another process that takes what it makes for a leftover: the first `times` folders."""
    original, made = tempfile.mkdtemp, itertools.count()

    def mkdtemp(suffix: str | None = None, prefix: str | None = None, dir: Path | None = None) -> str:
        name = original(suffix, prefix, dir)
        if next(made) < times:
            assert dir is not None
            assert prefix is not None
            remove_leftovers(dir, prefix)
        return name

    return mkdtemp


def test_a_folder_that_another_process_took_for_a_leftover_is_made_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", swept_once_made(3))
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    monkeypatch.setattr(tempfile, "mkdtemp", swept_once_made(10**6))
    with pytest.raises(DiskError, match=r"cannot be written: other processes remove every folder that is made there$"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_several_may_write_one_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_sync", lambda path: None)  # to be quick
    path = tmp_path / "a.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_json(path, {"a": number}), range(400)))
    assert read_json(path)["a"] in range(400)
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_draft_that_a_killed_process_left_is_removed_and_nothing_of_the_users(tmp_path: Path) -> None:
    users = {".table.csv.original", ".table.csv.20260531", ".table.csv.tmp", ".table.csv.lock", ".recbole-mm-notes.rmm"}
    for name in users:
        (tmp_path / name).write_text("mine")
    for name in (".tiny-original", ".tiny-original-1.rmm", "recbole-mm-compare-baseline", ".table.csv.baseline"):
        (tmp_path / name).mkdir()
        users.add(name)
    with scratch_folder(tmp_path, DRAFT) as folder:
        left = folder.name
    (tmp_path / left).mkdir()
    (tmp_path / left / "config.yaml").write_text("half")
    write_text(tmp_path / "table.csv", "a\n")
    for prefix in (".tiny-", "recbole-mm-compare-"):
        remove_leftovers(tmp_path, prefix)
    assert set(os.listdir(tmp_path)) == {*users, "table.csv"}
    assert (tmp_path / ".table.csv.original").read_text() == "mine"


def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".json")
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


def test_locks_that_killed_processes_left_are_removed_and_others_are_not(tmp_path: Path) -> None:
    ours = [
        ".BPR-toy-1a2b3c4d.lock",
        ".BPR-toy-1a2b3c4d-2.lock",
        ".artifacts-0123456789abcdef.lock",
        ".tiny-01234567.lock",
    ]
    for name in (*ours, ".thesis.lock", "thesis-1a2b3c4d.lock"):
        (tmp_path / name).touch()
    with FileLock(tmp_path / ".held-1a2b3c4d.lock"), locked(tmp_path / "model", "making"):
        left = {".held-1a2b3c4d.lock", ".model.lock", ".thesis.lock", "thesis-1a2b3c4d.lock"}
        assert set(os.listdir(tmp_path)) == left


def test_rays_folder_goes_with_it_and_is_rays_own_where_sockets_could_not_be_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    with _folder_of_ray(True) as options:
        assert options == {}, f"{tmp_path} is too long"
    monkeypatch.setattr(cluster, "LONGEST_PARENT", 1000)
    with _folder_of_ray(False) as options:
        assert options == {}
    with _folder_of_ray(True) as options:
        assert Path(options["_temp_dir"]).parent == tmp_path
        assert Path(options["_temp_dir"]).is_dir()
    assert os.listdir(tmp_path) == []


def test_a_lock_is_removed_after_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="why"), locked(tmp_path / "model", "making"):
        raise ValueError("why")
    assert os.listdir(tmp_path) == []


# --- checksums -------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_json_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", {"metric": 0.125, "names": ["ü", None], "deep": {"a": [1, 2]}}
    write_json(path, content, ensure_ascii=False)
    assert read_json(path) == content
    whole = path.read_bytes()
    passed = 0
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole)
            flip(path, place, bit)
            try:
                found = read_json(path)
            except ValueError:
                continue
            passed += 1  # a flip in the mark itself takes the mark away
            assert {name: found[name] for name in content} == content
    assert passed <= len("recbole_mm crc32=") * 8


def test_every_flipped_bit_of_a_parquet_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"user_id": ["a", "b"], "ndcg@10": [0.5, 0.25]})
    write_parquet(path, table)
    assert read_parquet(path).equals(table)
    assert read_parquet(path, ["ndcg@10"]).column_names == ["ndcg@10"]
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole)
        flip(path, place, place % 8)
        try:
            found = read_parquet(path)
        except (OSError, ValueError):
            continue
        assert found.equals(table)


def test_yaml_of_ours_is_checked_and_others_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, f"{SEAL_LINE}# Run it again\nlearning_rate: 0.001\n")
    assert read_yaml(path) == {"learning_rate": 0.001}
    assert read_yaml(path) == read_yaml(path)
    damaged = path.read_text().replace("0.001", "0.003")
    path.write_text(damaged)
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged: .* restore it, or remove its first line if you"):
        read_yaml(path)
    path.write_text(damaged.partition("\n")[2])
    assert read_yaml(path) == {"learning_rate": 0.003}


QUOTES = [
    "a: recbole_mm crc32=deadbeef\n",
    "a: 1  # recbole_mm crc32=deadbeef\n",
    "# config.yaml\n# recbole_mm crc32=deadbeef\na: 1\n",
    "# Its mark, recbole_mm crc32=deadbeef, is gone\na: 1\n",
    '{"a": "recbole_mm crc32=deadbeef"}',
    'aaaaaa: {"a":"recbole_mm crc32=deadbeef"}',
]


@pytest.mark.parametrize("text", QUOTES)
def test_a_yaml_file_may_quote_a_mark(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert read_yaml(path) == yaml.safe_load(text)
    write_text(path, f"{SEAL_LINE}{text}")
    assert read_yaml(path) == yaml.safe_load(text)


@pytest.mark.parametrize("text", [f"| a |\n| {UNSEALED} |\n", f"a,b\n1,{UNSEALED}\n", f'[{{"a": "{UNSEALED}"}}]'])
def test_a_text_that_quotes_a_mark_is_written_as_it_is(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "table", text)
    assert (tmp_path / "table").read_text() == text


def test_data_may_quote_a_mark(tmp_path: Path) -> None:
    quoted = "recbole_mm crc32=deadbeef"
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": 1, "checksum of another": quoted, "deep": {"checksum": quoted}}))
    assert read_json(path)["deep"] == {"checksum": quoted}
    path, table = tmp_path / "a.parquet", pa.table({"user_id": [quoted, quoted, "\x18\x19" + quoted]})
    pq.write_table(table, path)
    assert read_parquet(path).equals(table)
    write_parquet(path, table)
    assert read_parquet(path).equals(table)
    flip(path, path.read_bytes().index(quoted.encode()))
    with pytest.raises(ChecksumError):
        read_parquet(path)
    path = tmp_path / "a.safetensors"
    data = torch.frombuffer(bytearray(f'":"{quoted}'.encode()), dtype=torch.uint8)
    save_file({"w": data}, path, {"note": f'a "checksum":"{quoted}"'})
    assert torch.equal(load_tree(path)["w"], data)
    save_tree(path, {"w": data, "note": f'a "checksum":"{quoted}"'}, {"a": f'"":"{quoted}"'})
    assert load_tree(path)["note"] == f'a "checksum":"{quoted}"'


def test_every_flipped_bit_of_a_yaml_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, f"{SEAL_LINE}# Run it again\nlearning_rate: 0.001\nmodel: 'BPR'\n")
    settings, whole = read_yaml(path), path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), range(8)):
        path.write_bytes(whole)
        flip(path, place, bit)
        try:
            found = read_yaml(path)
        except ConfigError:
            continue
        assert found == settings, (place, bit)
        assert place < len(SEAL_LINE)


@pytest.mark.parametrize("change", [b"\xef\xbb\xbf", b"\r\n"])
def test_what_an_editor_adds_to_a_marked_file_is_a_change(tmp_path: Path, change: bytes) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, f"{SEAL_LINE}a: 1\n")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\n", change) if change == b"\r\n" else change + whole)
    with pytest.raises(ConfigError, match="damaged"):
        read_yaml(path)


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, f"{SEAL_LINE}a: 1\nb: 2\n")
    path.write_text(path.read_text().removesuffix("b: 2\n"))
    with pytest.raises(ConfigError, match="damaged"):
        read_yaml(path)


def test_a_folder_of_other_programs_files_has_a_list(tmp_path: Path) -> None:
    check_checksums(tmp_path)  # none: as it is
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    check_checksums(tmp_path)
    told = subprocess.run(["sha256sum", "--check", CHECKSUMS], cwd=tmp_path, capture_output=True, check=False)
    assert told.returncode == 0
    flip(tmp_path / "model.safetensors", 3)
    with pytest.raises(ChecksumError, match=r"model\.safetensors is damaged: its checksum does not match"):
        check_checksums(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ChecksumError, match=r"model\.safetensors is gone"):
        check_checksums(tmp_path)


# --- logs and boards -------------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path: Path, capfd, monkeypatch) -> None:
    init_logging(tmp_path, "INFO")
    try:
        handler = next(one for one in logging.getLogger().handlers if str(tmp_path) in getattr(one, "baseFilename", ""))
        monkeypatch.setattr(handler, "flush", full_disk)
        for _ in range(3):
            logging.getLogger("recbole_mm").info("a line")
    finally:
        close_logging()
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert told.count("run.log: cannot be written: No space left on device") == 1
    assert told.count("a line") == 3


def test_a_log_in_place_of_which_there_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    with pytest.raises(DiskError, match=r"run\.log: cannot be written: Is a directory"):
        init_logging(tmp_path)


def test_a_board_that_cannot_be_written_is_one_line(tmp_path: Path, capfd, monkeypatch) -> None:
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(DiskError, match=r"tensorboard: cannot be written: (File exists|Not a directory)"):
        TensorBoard(tmp_path / "tensorboard").add_scalar("a", 1.0, 0)
    from tensorboard.summary.writer import record_writer

    board = TensorBoard(tmp_path / "board")
    board.add_scalar("a", 1.0, 0)
    monkeypatch.setattr(record_writer.RecordWriter, "write", full_disk)

    def go_on() -> None:
        for step in range(3000):  # until the board's own thread has written
            board.add_scalar("a", 1.0, step)
            time.sleep(0.01)

    with pytest.raises(DiskError, match=r"board: cannot be written: No space left on device"):
        go_on()
    with pytest.raises(DiskError, match=r"board: cannot be written: No space left on device"):
        board.close()
    board.close()  # it is
    assert "Traceback" not in capfd.readouterr().err
