"""The documentation: links lead somewhere, pages are in the navigation, the reference is of what there is."""

from __future__ import annotations

import logging
import pkgutil
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from recbole_mm.cli import COMMANDS
from recbole_mm.cli.arguments import run_arguments
from recbole_mm.config.resolved import Config
from recbole_mm.datasets import CONVERTERS
from recbole_mm.experiments.compare import experiment_names
from recbole_mm.inputs.needs import warn_without_effect
from recbole_mm.models.hooks import hooks_of

ROOT = Path(__file__).parents[1]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
OUTSIDE = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
OUTSIDE["benchmarks/RESULTS.md"] = "benchmarks/RESULTS.md"
"""Pages of the site that are not in docs/, by their place on the site."""


def prose(page: Path) -> str:
    """The page without blocks and spans of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", "`code`", re.sub(r"^ {4}.*$", "", text, flags=re.M))


def anchors(page: Path) -> set[str]:
    """The page's headings as parts of an address."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def entries(nav: list | dict | str) -> Iterator[str]:
    """The files that a navigation names, in order."""
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from entries(entry)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_the_navigation_names_every_page_once():
    listed = list(entries(SITE["nav"]))
    assert len(listed) == len(set(listed))
    inside = {name for name in listed if name not in OUTSIDE}
    assert inside == {page.name for page in ROOT.glob("docs/*.md")}
    assert {OUTSIDE[name] for name in listed if name in OUTSIDE} == set(OUTSIDE.values())
    assert all((ROOT / name).is_file() for name in OUTSIDE.values())


def test_the_site_is_built_strictly():
    assert SITE["strict"] is True
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make docs" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_reference_names_what_there_is():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(named) > 20
    for name in named:
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_readme_is_one_screen():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40


def test_figures_of_the_readme_are_those_of_the_results():
    """Numbers of the table `measured`, such as .0674, 30,999 and 43 times, stand in RESULTS.md."""
    readme, results = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "benchmarks/RESULTS.md"))
    table = readme.split("| measured")[1].split("\n\n")[0]
    figures = re.findall(r"(?<![\w3489-])\d*[.,]\d+|\d+ times|\+\d+\.\d", table.split("---|\n", 1)[1])
    assert len(figures) >= 15
    measured = results.replace("x |", " times |").replace("x,", " times,")
    assert [figure for figure in figures if figure.lstrip("+") not in measured] == []


def test_errors_of_the_troubleshooting_page_are_said_by_the_sources():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    files = [*ROOT.glob("recbole_mm/**/*.py"), ROOT / "run_recbole_mm.py", ROOT / "Makefile"]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # texts that go on in the next line
    said = [text for text in re.findall(r"^\| `([^`]+)` \|", page, flags=re.M) if not text.startswith("pip ")]
    assert len(said) > 15
    assert [text for text in said if text not in sources] == []


def test_the_examples_page_names_every_example():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / "examples").iterdir() if path.is_file()}
    assert set(re.findall(r"\]\(\.\./examples/([^)]+)\)", page)) == there


COMMAND = r"^(?: {4,})?(?:\.venv/bin/)?((?:recbole-mm|python run_recbole_mm\.py) .*)$"


def commands() -> list[list[str]]:
    """The words of every command of docs/ and README, once; test_docs_commands runs those of the guides."""
    found: dict[str, list[str]] = {}
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(COMMAND, text, flags=re.M):
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
            words = ["run", *words[2:]] if words[0] == "python" else words[1:]
            found[" ".join(words)] = words
    return list(found.values())


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_name_models_settings_experiments_and_sources_that_there_are(words, toy_path, caplog, monkeypatch):
    command, *arguments = (word for word in words if word != "--config_files=my.yaml")  # which a page writes
    assert command in COMMANDS
    monkeypatch.chdir(ROOT)
    if command in ("run", "plan") and "--help" not in arguments:
        given = {**run_arguments(arguments), "dataset": "toy"}
        with caplog.at_level(logging.WARNING):
            config = Config(**given, config_dict={"data_path": str(toy_path)})
            warn_without_effect(config, hooks_of(config.model_class))
        assert "unknown" not in caplog.text
        assert "no effect" not in caplog.text
    if command in ("compare", "tune", "recommend", "serve"):
        import_module(f"recbole_mm.cli.{command}")._parser().parse_known_args(arguments)
    if "--experiment" in arguments:
        assert arguments[arguments.index("--experiment") + 1] in experiment_names()
    if command == "prepare":
        assert arguments[0] in {*CONVERTERS, "SOURCE"}
