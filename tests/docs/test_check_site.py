"""`tools/check_site.py` finds what a reader would miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of one page with which nothing is wrong."""
    (tmp_path / "logo.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text(
        '<a href="https://example.com/">elsewhere</a><a href="#here">here</a><img src="logo.svg"><p>// a comment</p>'
    )
    return tmp_path


def test_a_whole_site_passes(site: Path) -> None:
    """A link that a reader follows may lead to another host."""
    assert check_site.main(site) == 0


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.com/a.js"></script>',
        '<link rel="stylesheet" href="//cdn.example.com/a.css">',
        '<img src="http://example.com/a.png">',
        '<script type="module">import mermaid from "https://cdn.example.com/mermaid.mjs"</script>',
        "<style>@import 'https://example.com/a.css'</style>",
    ],
)
def test_what_a_page_loads_from_another_host_is_found(
    site: Path, html: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The site works offline."""
    (site / "page.html").write_text(html)
    assert check_site.main(site) == 1
    assert "page.html: loads " in capsys.readouterr().err


def test_what_a_style_sheet_loads_from_another_host_is_found(site: Path) -> None:
    """Fonts, for example."""
    (site / "a.css").write_text("body{src:url(https://fonts.example.com/a.woff2)}")
    assert check_site.main(site) == 1


@pytest.mark.parametrize("html", ['<a href="gone.html#part">there</a>', '<img src="../outside.png">'])
def test_a_link_that_leads_nowhere_is_found(site: Path, html: str) -> None:
    """Whoever follows a link finds a page."""
    (site / "page.html").write_text(html)
    assert check_site.main(site) == 1


def test_a_site_without_pages_is_wrong(tmp_path: Path) -> None:
    """It was not built, and nothing was checked."""
    assert check_site.main(tmp_path) == 1
