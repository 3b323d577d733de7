"""What is published can be installed and works, built from a folder that knows nothing of git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "results", "node_modules")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from it."""
    source, target = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    without_git = {**os.environ, "GIT_CEILING_DIRECTORIES": str(source.parent)}
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", target, source], check=True, env=without_git, capture_output=True
    )
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    [wheel] = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What an index reads of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_it_has_a_version_without_git(built: Path, metadata: Message) -> None:
    """A release of a distribution's packagers has no history."""
    assert metadata["Version"] == "0.1.0.dev0"
    assert sorted(path.suffix for path in built.iterdir()) == [".gz", ".whl"]


def test_the_wheel_has_types_licences_and_what_the_dashboard_shows(wheel: Path, metadata: Message) -> None:
    """What is no Python is left behind easily."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"celery_reactive/py.typed", "celery_reactive/dashboard/static/htmx.min.js"} <= names
    assert "celery_reactive/dashboard/templates/base.html" in names
    licences = metadata.get_all("License-File") or []
    assert len(licences) == 3
    assert [one for one in licences if not any(name.endswith(f"licenses/{one}") for name in names)] == []
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


def test_its_description_has_no_link_that_leads_nowhere(metadata: Message) -> None:
    """An index knows no other file of the repository."""
    text = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# celery-reactive")
    assert re.findall(r"\]\((?!https://)|src=\"(?!https://)", text) == []


def test_an_index_takes_them(built: Path) -> None:
    """A broken description is refused at the upload, when the tag is out already."""
    tools = Path(sys.executable).parent
    subprocess.run([tools / "twine", "check", "--strict", *built.iterdir()], check=True, capture_output=True)
    subprocess.run(
        [tools / "check-wheel-contents", "--config", ROOT / "pyproject.toml", *built.glob("*.whl")], check=True
    )


def test_a_fresh_environment_can_use_it(wheel: Path, tmp_path: Path) -> None:
    """The first command of the README; nothing of the development is needed."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    programs = environment / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}[redis]"], check=True)
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        "from celery_reactive import reactive_task\n"
        "app = Celery('proj', broker='redis://localhost')\n"
        "@reactive_task(collection='orders')\n"
        "@app.task\n"
        "def sync(ctx): ...\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in (["celery-reactive", "-A", "proj"], ["celery", "-A", "proj", "reactive"]):
        said = subprocess.run(
            [programs / command[0], *command[1:], "planner", "--help"],
            cwd=tmp_path,
            env=clean,
            check=True,
            capture_output=True,
            text=True,
        )
        assert "Run a planner" in said.stdout
    subprocess.run(
        [programs / "python", "-c", "import proj; assert proj.sync.reactive.collection == 'orders'"],
        cwd=tmp_path,
        env=clean,
        check=True,
    )
