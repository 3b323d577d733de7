"""Tells what a reader of the built site would miss: links that lead nowhere, and pages that load from another host.

Run by `make check`, after the site is built. The site must work offline and tell nobody who reads it: whatever a page
loads by itself (scripts, styles, pictures, fonts) lies beside it. Links that a reader follows may lead anywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).parents[1] / "build" / "docs"
LOADING = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
"""Elements that make a browser load something, with the attribute that names it."""
ELSEWHERE = re.compile(r"(?:https?:)?//[\w.-]+", re.ASCII)
_IN_A_STYLE = re.compile(r"""(?:url\(\s*|@import\s*)["']?((?:https?:)?//[^"')\s]+)""")
_IN_A_SCRIPT = re.compile(r"""(?:\bfrom|\bimport\(?|\bfetch\()\s*["'`]((?:https?:)?//[^"'`\s]+)""")


def main(site: Path = SITE) -> int:
    """Print what is wrong with *site*; 1 if anything is, or if there is no page."""
    pages = sorted(site.rglob("*.html"))
    if not pages:
        print(f"no page in {site}: make docs", file=sys.stderr)
        return 1
    wrong = [f"{page.relative_to(site)}: {what}" for page in pages for what in wrong_in(page, site)]
    wrong += [f"{style.relative_to(site)}: loads {url}" for style in site.rglob("*.css") for url in loaded_by(style)]
    print(f"{len(pages)} pages of the site")
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


def wrong_in(page: Path, site: Path) -> Iterator[str]:
    """Yield what is wrong with one page."""
    found = Links(page.read_text())
    for url in found.loaded:
        if ELSEWHERE.match(url):
            yield f"loads {url}"
    for url in [*found.loaded, *found.followed]:
        target = urlsplit(url)
        if target.scheme or target.netloc or not target.path:
            continue
        file = (page.parent / unquote(target.path)).resolve()
        if not file.is_relative_to(site.resolve()) or not file.exists():
            yield f"leads to {url}, which is not there"


def loaded_by(style: Path) -> list[str]:
    """Return what a style sheet loads from other hosts."""
    return _IN_A_STYLE.findall(style.read_text())


class Links(HTMLParser):
    """What a page loads by itself, and what a reader can follow."""

    def __init__(self, text: str) -> None:
        """Read a page."""
        super().__init__()
        self.loaded: list[str] = [*_IN_A_STYLE.findall(text), *_IN_A_SCRIPT.findall(text)]
        self.followed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links of an element."""
        values = dict(attrs)
        if (loaded := values.get(LOADING.get(tag, ""))) is not None:
            self.loaded.append(loaded)
        if tag == "a" and (followed := values.get("href")):
            self.followed.append(followed)


if __name__ == "__main__":
    sys.exit(main())
