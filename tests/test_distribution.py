"""The wheel and the source distribution hold what they should, and the wheel runs where the source tree is not."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import recbole_mm

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def tree(folder: str, pattern: str) -> set[str]:
    """The files of the source tree below a folder, relative to it."""
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob(pattern) if path.is_file()}


def python(*arguments: str, program: str = sys.executable, **given) -> subprocess.CompletedProcess[str]:
    """Run Python away from the source tree; the test fails with what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution and the wheel made of it."""
    pytest.importorskip("build.env")
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_properties_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    packaged = {name.removeprefix("recbole_mm/") for name in names if name.startswith("recbole_mm/")}
    assert len(packaged) == len(names), "something beside the package"
    properties = {f"properties/{name}" for name in tree("properties", "*.yaml")}
    assert len(properties) > 50
    pages = tree("recbole_mm", "*.html")
    assert packaged == tree("recbole_mm", "*.py") | pages | properties | {"py.typed"}


def test_the_source_distribution_builds_the_wheel_and_reads_on_its_own(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "setup.py", "constraints.txt", "run_recbole_mm.py", "Makefile"}
    wanted |= {f"docs/{name}" for name in tree("docs", "*.md")} | {f"tests/{name}" for name in tree("tests", "*.py")}
    wanted |= {f"examples/{name}" for name in tree("examples", "*.py")}
    assert wanted - names == set()
    assert not [name for name in names if name.startswith((".venv", "saved", "dataset", "build"))]


def canonical(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheel_requires_what_its_modules_import(wheel):
    """Each package from which a module imports is required, or belongs to an extra. RecBole is installed apart."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        required = set(re.findall(r"^Requires-Dist: ([\w.-]+)", archive.read(metadata).decode(), flags=re.M))
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    imported = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module.partition(".")[0])
    brought_by = {**packages_distributions(), "mlflow": ["mlflow-skinny"]}
    required = {canonical(name) for name in required}
    third_party = imported - set(sys.stdlib_module_names) - {"recbole", "recbole_mm"}
    assert len(third_party) > 15
    missing = {name for name in third_party if not required & set(map(canonical, brought_by.get(name, [name])))}
    assert missing == set()


def test_the_version_stands_in_one_place(wheel):
    assert wheel.name.split("-")[1] == recbole_mm.__version__
    text = f'"{recbole_mm.__version__}"'
    holding = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml")) if text in path.read_text(encoding="utf-8")]
    assert holding == []
    assert re.findall(re.escape(text), (ROOT / "recbole_mm" / "__init__.py").read_text(encoding="utf-8")) == [text]


def test_the_wheel_runs_in_an_environment_without_the_source_tree(wheel, tmp_path):
    """The environment is empty but for the wheel; what the wheel needs is read from the one of the tests."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    program = str(tmp_path / "venv" / "bin" / "python")
    site = Path(python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", program=program).stdout.strip())
    python("-m", "pip", "--python", program, "install", "--quiet", "--no-deps", str(wheel))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = python("-c", "import recbole_mm; print(recbole_mm.__file__)", program=program, cwd=tmp_path).stdout
    assert where.startswith(str(tmp_path))
    command = str(tmp_path / "venv" / "bin" / "recbole-mm")
    assert recbole_mm.__version__ in python("--version", program=command, cwd=tmp_path).stdout
    settings = ("--epochs=1", "--full_sequence=True", "--MAX_ITEM_LIST_LENGTH=20", "--user_inter_num_interval=[20,25]")
    run = ("run", "--model=SASRec", "--dataset=ml-100k", *settings)
    said = python(*run, program=command, cwd=tmp_path).stdout.splitlines()
    assert (tmp_path / said[-1] / "model.safetensors").is_file()
    assert "MLLMRec" in python("models", program=command, cwd=tmp_path).stdout
