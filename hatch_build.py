"""The description that an index shows: the README, whose relative links would lead nowhere there.

Run by hatchling whenever metadata are made. With `DOCS_REPOSITORY_URL`, as `https://git.example.com/team/repo/blob/main`,
links and pictures are those of the repository; without it links are plain words, and there are no pictures.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_ELSEWHERE = r"(?!https?:|mailto:)"
_LINK = re.compile(rf"(?P<picture>!?)\[(?P<text>[^\]]*)\]\({_ELSEWHERE}(?P<target>[^)\s]+)\)")
_PICTURE_IN_HTML = re.compile(rf'<img src="{_ELSEWHERE}(?P<target>[^"]+)"(?P<rest>[^>]*)>\n*')


class Description(MetadataHookInterface):
    """Gives the project its long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the description to *metadata*."""
        repository = os.environ.get("DOCS_REPOSITORY_URL", "").rstrip("/")
        text = described((Path(self.root) / "README.md").read_text(encoding="utf-8"), repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def described(readme: str, repository: str) -> str:
    """Return *readme* with no relative links.

    Args:
        readme: Markdown, with links to files of the repository.
        repository: Where those files can be looked at; empty: nowhere.
    """

    def link(found: re.Match[str]) -> str:
        if repository:
            raw = "?raw=true" if found["picture"] else ""
            return f"{found['picture']}[{found['text']}]({repository}/{found['target']}{raw})"
        return "" if found["picture"] else found["text"]

    def picture(found: re.Match[str]) -> str:
        return f'<img src="{repository}/{found["target"]}?raw=true"{found["rest"]}>\n\n' if repository else ""

    return _PICTURE_IN_HTML.sub(picture, _LINK.sub(link, readme))
