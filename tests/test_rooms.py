"""The order of rooms: imports, lazy ones and those for type checkers included, point down one list, in no circle."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

import recbole_mm

PACKAGE = Path(recbole_mm.__file__).parent
TOP_LEVEL = frozenset({"__init__", "__main__", "registry", "errors", "compat"})

ROOMS = (
    ("recbole_mm",),  # the package itself, which offers `run` and `load`
    ("cli",),
    ("reporting", "serving"),
    ("experiments",),
    ("recommending",),
    ("runs",),
    ("distributed",),
    ("training", "evaluation"),
    ("models",),
    ("inputs",),
    ("llm",),
    ("graph",),
    ("artifacts",),
    ("datasets",),
    ("data",),
    ("config",),
    ("registry", "errors", "utils", "compat"),
)
"""From the top down: a module imports from its own row and from those below."""

CRUMB_LINES = 40
"""A file of fewer lines that a single other module imports is a crumb."""

FILE = r"`([\w/]+(?:/|\.py|\.yaml))`"
"""A file or folder in a document."""

Graph = Mapping[str, Set[str]]


def imports(source: str, module: str, is_package: bool, modules: Set[str]) -> set[str]:
    """Returns the modules of the package that a module imports anywhere in its source.

    Args:
        source: its Python source.
        module: its full name.
        is_package: whether it is an `__init__`.
        modules: full names of all modules.
    """
    found = set()
    for name in _imported_names(ast.parse(source), module, is_package):
        if re.fullmatch(r"\w+(\.__\w+__)?", name):
            continue  # the package itself, for its `__version__` or `__file__`, which need nothing of it
        while name and name not in modules:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module}


def _imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def read_graph(package: Path) -> tuple[dict[str, set[str]], dict[str, Path]]:
    """Returns module -> modules it imports, and module -> file, of a package's folder."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    return {
        module: imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py", files.keys())
        for module, path in files.items()
    }, files


def upward(graph: Graph, rooms: tuple[tuple[str, ...], ...]) -> set[tuple[str, str]]:
    """Returns the imports of a graph that point from a room to one higher in the list."""
    level = {room: place for place, row in enumerate(rooms) for room in row}

    def level_of(module: str) -> int:
        return level.get(".".join(module.split(".")[1:2]) or module, len(rooms))

    return {(one, other) for one, others in graph.items() for other in others if level_of(other) < level_of(one)}


def circles(graph: Graph) -> set[tuple[str, ...]]:
    """Returns the sets of modules that can be reached from each other, each sorted (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            place = stack.index(module)
            if len(stack) - place > 1:
                found.add(tuple(sorted(stack[place:])))
            del stack[place:]

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return found


@pytest.fixture(scope="module")
def package() -> tuple[dict[str, set[str]], dict[str, Path]]:
    return read_graph(PACKAGE)


def test_every_kind_of_import_is_read():
    modules = {"p", "p.a", "p.a.one", "p.a.two", "p.b", "p.c", "p.d"}
    source = (
        "from typing import TYPE_CHECKING\n"
        "from . import two\n"
        "from ..b import name\n"
        "if TYPE_CHECKING:\n    import p.c\n"
        "def later():\n    from p import d\n    import os.path\n"
    )
    assert imports(source, "p.a.one", False, modules) == {"p.a.two", "p.b", "p.c", "p.d"}
    assert imports("from .one import name\nfrom .. import b, value", "p.a", True, modules) == {"p.a.one", "p.b", "p"}
    assert imports("import p\nfrom p import __version__", "p.a", True, modules) == set()


def test_circles_and_upward_arrows_are_found():
    graph = {"p": {"p.up.a"}, "p.up.a": {"p.low.b"}, "p.low.b": {"p.low.c"}, "p.low.c": {"p.up.a"}, "p.low.d": set()}
    assert circles(graph) == {("p.low.b", "p.low.c", "p.up.a")}
    assert upward(graph, (("p",), ("up",), ("low",))) == {("p.low.c", "p.up.a")}


def test_imports_point_down(package):
    graph, _ = package
    assert sorted(upward(graph, ROOMS)) == []


def test_no_modules_import_each_other(package):
    graph, _ = package
    assert sorted(circles(graph)) == []


def test_the_top_level_holds_rooms_and_little_else(package):
    assert {path.stem for path in PACKAGE.glob("*.py")} <= TOP_LEVEL
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= {room for row in ROOMS for room in row}


def test_ray_is_called_in_one_room(package):
    _, files = package
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in files.items()}
    users = {
        module
        for module, tree in trees.items()
        if any(name.partition(".")[0] == "ray" for name in _imported_names(tree, module, False))
    }
    others = {module for module in users if not module.startswith("recbole_mm.distributed.")}
    assert others == {"recbole_mm.experiments.tune.draws"}, "Ray Tune's interfaces, which a search implements"


def test_no_crumbs(package):
    graph, files = package
    importers = defaultdict(set)
    for module, others in graph.items():
        for other in others:
            importers[other].add(module)
    small = [
        module
        for module, path in files.items()
        if path.name != "__init__.py" and path.read_text(encoding="utf-8").count("\n") < CRUMB_LINES
    ]
    crumbs = {module: importers[module] for module in small if len(importers[module]) == 1}
    assert crumbs == {}, "each belongs into the file that imports it"


def test_the_map_lists_the_rooms_from_the_top_down_and_names_files_that_exist():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("## The rooms") : text.index("## Where to find")]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    listed = [(rooms, files) for first, _, files in rows for rooms in re.findall(r"`(\w+)/`", first)]
    there = [room for row in ROOMS for room in row if (PACKAGE / room / "__init__.py").is_file()]
    assert [room for room, _ in listed] == there
    named = re.findall(FILE, text[text.index("## Where to find") :])
    named += [f"{room}/{file}" for room, files in listed if room != "utils" for file in re.findall(FILE, files)]
    lost = [name for name in named if not any((root / name).exists() for root in (PACKAGE, PACKAGE.parent))]
    assert lost == []
