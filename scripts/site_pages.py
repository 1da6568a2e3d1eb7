"""What `make docs` does to the pages (a hook of MkDocs), so that they are read on GitHub and on the site from one text.

README.md is the site's start, CONTRIBUTING.md and CHANGELOG.md are pages of it. A link to a file that is no page keeps
its text only. `math` blocks become MathML, which browsers show by themselves. A link that leads nowhere stays as it
is: MkDocs, which is strict, ends with an error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OF_THE_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")
LIST = re.compile(r"^(?!- |\s)(.+)\n(?=- )", flags=re.MULTILINE)
"""A line of text and a list right below it: GitHub needs no empty line between them, Python-Markdown does."""
FENCE = re.compile(r"^(`{3,}).*?^\1$", flags=re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the function that writes a `math` block."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for name, source in OF_THE_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages; code blocks stay as they are."""
    uri = page.file.src_uri
    folder = (ROOT / OF_THE_ROOT[uri] if uri in OF_THE_ROOT else DOCS / uri).parent
    text, done = "", 0
    for block in (*FENCE.finditer(markdown), None):
        between = markdown[done : block.start() if block else None]
        text += LINK.sub(lambda link: _relinked(link, folder, uri), LIST.sub(r"\1\n\n", between))
        if block:
            text, done = text + block[0], block.end()
    return text


def _relinked(link: re.Match[str], folder: Path, uri: str) -> str:
    if "://" in link["target"]:
        return link[0]
    target = (folder / link["target"]).resolve()
    pages = {ROOT / source: name for name, source in OF_THE_ROOT.items()}
    if target.is_file() and (target in pages or target.is_relative_to(DOCS)):
        to = pages.get(target) or target.relative_to(DOCS).as_posix()
        return f"[{link['text']}]({posixpath.relpath(to, posixpath.dirname(uri) or '.')}{link['anchor'] or ''})"
    return link["text"] if target.exists() else link[0]


def formula(
    source: str,
    language: str,
    css_class: str,
    options: Mapping[str, Any],
    md: Any,
    classes: Any = None,
    id_value: str = "",
    attrs: Any = None,
) -> str:
    """A block of LaTeX as MathML; the arguments are those that pymdownx hands over."""
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'
