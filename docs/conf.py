"""The site: `make docs` builds it from the pages of this folder into `build/docs`, with warnings as errors.

Pages are written to be read in the repository, too. What only a site needs is done here: links to files outside this
folder, the anchors of headings, and each page's source beside it for programs (`llms.txt`).
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
# Where the repository can be looked at; links to files outside the site are plain words without it.
REPOSITORY = os.environ.get("DOCS_REPOSITORY_URL", "").rstrip("/")

project = "celery-reactive"
author = "The celery-reactive authors"
project_copyright = author
release = importlib.metadata.version("celery-reactive")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "celery-reactive"
html_logo = "images/logo.svg"
html_favicon = "images/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def setup(app: Sphinx) -> None:
    """Connect what this site adds to Sphinx."""
    app.connect("source-read", with_links_that_lead_out)
    app.connect("autodoc-process-docstring", without_rules)
    app.connect("build-finished", with_sources_beside)


def with_links_that_lead_out(_app: Sphinx, name: str, content: list[str]) -> None:
    """Turn links to files that are no part of the site into links to the repository, or into words."""
    page = FOLDER / f"{name}.md"

    def led_out(link: re.Match[str]) -> str:
        target = (page.parent / link["target"]).resolve()
        if target.is_relative_to(FOLDER) and target.suffix == ".md":
            return link[0]
        path = target.relative_to(ROOT)
        if REPOSITORY:
            return f"[{link['text']}]({REPOSITORY}/{path}{link['anchor'] or ''})"
        return f"{link['text']} (`{path}`)"

    content[0] = _LINK.sub(led_out, content[0])


def without_rules(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Take the numbers of rules, such as "(B-20)", out of a docstring: they are for those who work on the package."""
    lines[:] = [re.sub(r" ?\(B-[^)]*\)", "", line) for line in lines]


def with_sources_beside(app: Sphinx, error: Exception | None) -> None:
    """Lay each page's Markdown beside it, where `llms.txt` points at."""
    if error is None and app.builder.format == "html":
        for name in app.env.found_docs:
            shutil.copyfile(FOLDER / f"{name}.md", Path(app.outdir) / f"{name}.md")
