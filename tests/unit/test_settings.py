"""The settings: what is set is checked at once, all of it, and no password gets out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from celery_reactive.errors import ConfigurationError
from celery_reactive.settings import Settings

CONNECTION = "mongodb://me:secret@db.example:27017/shop?authSource=admin"


def load(environ: dict[str, str] | None = None, **values: Any) -> Settings:
    """Load settings from *values* under their full names."""
    named = {f"reactive_{name}": value for name, value in values.items()}
    return Settings.load(named.get, list(named), environ or {})


def test_defaults_are_those_of_the_documentation() -> None:
    """Public surface, settings."""
    settings = load()
    assert settings.mongodb_url == "mongodb://localhost:27017"
    assert (settings.records_suffix, settings.globals_collection) == ("_tasks", "_celery_reactive")
    assert settings.visibility_timeout == timedelta(seconds=60)
    assert settings.heartbeat == timedelta(seconds=12)
    assert (settings.leader_ttl, settings.batch_size, settings.chunk) == (timedelta(seconds=30), 1000, "auto")


def test_an_instances_name_is_never_shared() -> None:
    """Public surface: host and a random part."""
    assert load().instance_id != load().instance_id


def test_the_setting_comes_before_the_environment() -> None:
    """Public surface: the environment is the fallback."""
    environ = {"CELERY_REACTIVE_MONGODB_URL": "mongodb://env/x"}
    assert load(environ).mongodb_url == "mongodb://env/x"
    assert load(environ, mongodb_url="mongodb://set/x").mongodb_url == "mongodb://set/x"


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """Public surface: an unknown key is an error with a suggestion."""
    with pytest.raises(ConfigurationError) as raised:
        load(visibility_timout="60s", batch_size=0, leader_ttl="soon", chunk="big", metrics_scrape_mode="clusters")
    said = str(raised.value)
    assert "reactive_visibility_timout: unknown setting" in said
    assert "'reactive_visibility_timeout'" in said
    assert "'cluster'" in said
    assert len(raised.value.problems) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visibility_timeout", "0.5s"),
        ("visibility_timeout", -1),
        ("batch_size", True),
        ("batch_size", "many"),
        ("max_in_flight", 0),
        ("chunk", 0),
        ("database", "a.b"),
        ("records_suffix", ""),
        ("globals_collection", "$x"),
        ("mongodb_url", "http://x"),
        ("mongodb_client", "no callable"),
        ("task_caller", 5),
        ("metrics_enabled", 1),
        ("metrics_port", 70000),
        ("metrics_read_preference", "fastest"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    """Public surface, settings."""
    with pytest.raises(ConfigurationError, match=f"reactive_{name}"):
        load(**{name: value})


def test_no_password_gets_out() -> None:
    """Design, trust: connection strings never appear in logs or errors."""
    settings = load(mongodb_url=CONNECTION)
    assert "secret" not in repr(settings)
    assert settings.shown_url == "mongodb://db.example:27017/shop"
    with pytest.raises(ConfigurationError) as raised:
        load(mongodb_url="mongo//me:secret@x", batch_size=0)
    assert "secret" not in str(raised.value)
