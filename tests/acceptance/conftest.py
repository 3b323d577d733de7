"""Fixtures of the acceptance tests: a user's project in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from tests.acceptance.project import Project


@pytest.fixture
def project(tmp_path: Path, database: Database[Any], mongodb_url: str, broker_url: str) -> Iterator[Project]:
    """A project on real servers; its processes end with the test."""
    project = Project(tmp_path, database, {"MONGODB_URL": mongodb_url, "BROKER_URL": broker_url})
    yield project
    project.stop()
