"""The settings: what is set is checked at once, all of it, and no password gets out."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_reactive import Reactive
from celery_reactive.errors import ConfigurationError
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection

CONNECTION = "mongodb://me:secret@db.example:27017/shop?authSource=admin"

SET: dict[str, Any] = {
    "mongodb_url": "mongodb://db.example/shop",
    "mongodb_client": dict,
    "database": "shop",
    "records_suffix": "_jobs",
    "globals_collection": "shared",
    "instance_id": "me",
    "visibility_timeout": timedelta(seconds=90),
    "leader_ttl": timedelta(seconds=9),
    "batch_size": 7,
    "max_in_flight": 70,
    "chunk": 3,
    "cleanup_interval": "CRON 0 3 * * *",
    "task_caller": "operator.call",
    "task_filter": "operator.truth",
    "redact": ("email",),
    "metrics_enabled": False,
    "metrics_scrape_mode": "local",
    "metrics_push_interval": timedelta(seconds=5),
    "metrics_read_preference": "primary",
    "metrics_port": 9000,
    "metrics_host": "0.0.0.0",  # noqa: S104 -- opens nothing
}
"""Each setting with a value that is not its default."""


def load(environ: dict[str, str] | None = None, **values: Any) -> Settings:
    """Load settings from *values* under their full names."""
    named = {f"reactive_{name}": value for name, value in values.items()}
    return Settings.load(named.get, list(named), environ or {})


def load_from(namespace: str | None, **values: Any) -> Settings:
    """Load what a Celery app has from a configuration such as Django's."""
    app = Celery("proj", set_as_current=False)
    app.config_from_object(values, namespace=namespace)
    return Reactive.of(app).runtime.settings


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
        ("redact", 5),
        ("redact", ["email", ""]),
        ("metrics_port", 70000),
        ("metrics_read_preference", "fastest"),
        ("metrics_host", "here and there"),
        ("metrics_port", 9000),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    """Public surface, settings."""
    with pytest.raises(ConfigurationError, match=f"reactive_{name}"):
        load(**{name: value})


@pytest.mark.parametrize("password", ["sec/ret", "sec@ret"])
def test_a_password_that_should_have_been_escaped_is_refused(password: str) -> None:
    """Design, trust: a driver would take a part of it for a host, and show it."""
    url = f"mongodb://me:{password}@db/shop?w=1"
    with pytest.raises(ConfigurationError, match="reactive_mongodb_url: expected @ and / of user") as raised:
        load(mongodb_url=url)
    with pytest.raises(ConfigurationError, match="CELERY_REACTIVE_MONGODB_URL: expected @ and / of user"):
        load({"CELERY_REACTIVE_MONGODB_URL": url})
    assert "sec" not in str(raised.value)
    assert Settings(mongodb_url=url).shown_url == "mongodb://db/shop"


@pytest.mark.parametrize("url", ["mongodb://me:sec:ret@db/shop", "mongodb://me:secret@db:port/shop", "mongodb://"])
def test_a_connection_string_that_the_driver_refuses_is_told_without_its_password(url: str) -> None:
    """Design, trust: it is wrong, and not away."""
    with pytest.raises(ConfigurationError, match="reactive_mongodb_url: expected a connection string") as raised:
        Connection(Settings(mongodb_url=url)).client.close()
    assert "sec" not in str(raised.value)


def test_an_at_sign_of_an_option_is_none_of_a_password() -> None:
    """What follows the question mark is not looked at."""
    assert load(mongodb_url="mongodb://db/shop?appName=me@here").mongodb_url.endswith("me@here")


def test_no_password_gets_out() -> None:
    """Design, trust: connection strings never appear in logs or errors."""
    settings = load(mongodb_url=CONNECTION)
    assert "secret" not in repr(settings)
    assert settings.shown_url == "mongodb://db.example:27017/shop"
    with pytest.raises(ConfigurationError) as raised:
        load(mongodb_url="mongo//me:secret@x", batch_size=0)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_every_setting_is_read_in_djangos_spelling(name: str) -> None:
    """Public surface: `CELERY_REACTIVE_…` under the namespace `CELERY`."""
    # The one that needs another beside it.
    others = {"CELERY_REACTIVE_METRICS_SCRAPE_MODE": "local"} if name == "metrics_port" else {}
    settings = load_from("CELERY", **{f"CELERY_REACTIVE_{name.upper()}": SET[name], **others})
    assert getattr(settings, name) == SET[name] != getattr(load_from("CELERY"), name)


def test_a_setting_of_the_app_itself_counts_under_a_namespace_too() -> None:
    """Public surface: any Celery way of setting it."""
    app = Celery("proj", set_as_current=False)
    app.config_from_object({"CELERY_REACTIVE_CHUNK": 3}, namespace="CELERY")
    app.conf.reactive_batch_size = 7
    settings = Reactive.of(app).runtime.settings
    assert (settings.chunk, settings.batch_size) == (3, 7)


@pytest.mark.parametrize(
    ("namespace", "key", "said"),
    [
        ("CELERY", "CELERY_REACTIVE_DATABSE", "unknown setting; did you mean 'CELERY_REACTIVE_DATABASE'?"),
        ("CELERY", "reactive_databse", "unknown setting; did you mean 'reactive_database'?"),
        ("CELERY", "CELERY_REACTIVE_COLOUR", "unknown setting"),
        ("CELERY", "REACTIVE_DATABASE", "nobody reads this spelling; write CELERY_REACTIVE_DATABASE"),
        ("CELERY", "celery_reactive_database", "nobody reads this spelling; write CELERY_REACTIVE_DATABASE"),
        ("celery", "CELERY_REACTIVE_DATABASE", "nobody reads this spelling; write celery_reactive_database"),
        ("shop_", "shop_reactive_databse", "unknown setting; did you mean 'shop_reactive_database'?"),
        (None, "CELERY_REACTIVE_DATABASE", "nobody reads this spelling; write reactive_database"),
        (None, "CELERY_REACTIVE_DATABSE", "unknown setting; did you mean 'reactive_database'?"),
        (None, "REACTIVE_DATABASE", "nobody reads this spelling; write reactive_database"),
    ],
)
def test_a_misspelt_setting_is_an_error_in_the_spelling_it_was_written_in(
    namespace: str | None,
    key: str,
    said: str,
) -> None:
    """Public surface: nothing is silently ignored."""
    with pytest.raises(ConfigurationError) as raised:
        load_from(namespace, **{key: "shop"})
    assert str(raised.value) == f"settings: {key}: {said}"


def test_a_wrong_value_is_refused_in_djangos_spelling() -> None:
    """Public surface: the name is the one to look for in `settings.py`."""
    with pytest.raises(ConfigurationError, match="CELERY_REACTIVE_BATCH_SIZE: expected an integer"):
        load_from("CELERY", CELERY_REACTIVE_BATCH_SIZE="many")


def test_settings_of_other_packages_are_none_of_ours() -> None:
    """Django's settings hold everybody's; the namespace tells ours."""
    assert load_from("CELERY", REACTIVE_COLOUR="red", SHOP_REACTIVE_DATABASE="x").database is None
