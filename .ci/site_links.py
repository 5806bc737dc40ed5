"""A hook of MkDocs: files of the repository outside of docs/ that pages link to become pages of the site, too.

On the site, docs/ and the repository's root are one folder; README.md is its first page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "benchmarks/*.md", "examples/*.*")
HOME = "index.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of docs/."""
    root = Path(config.config_file_path).parent
    for path in sorted(path for pattern in OUTSIDE for path in root.glob(pattern)):
        name = path.relative_to(root).as_posix()
        files.append(File.generated(config, HOME if name == "README.md" else name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return the page with links as they are on the site."""
    if page.file.src_dir is None:  # outside of docs/
        return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    return markdown.replace("](../", "](")
