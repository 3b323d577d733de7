"""The site is whole: every page is listed, everything public is in the reference and says what it is."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import click
import pytest

import celery_reactive
from celery_reactive import Reactive, testing
from celery_reactive.cli import reactive
from tests.docs import llms, tables

API = (llms.DOCS / "reference" / "api.md").read_text()


def members() -> Iterator[tuple[type, str]]:
    """Yield each public class with the name of each of its public methods and properties."""
    for name in celery_reactive.__all__:
        public = getattr(celery_reactive, name)
        if inspect.isclass(public):
            for member, thing in vars(public).items():
                if not member.startswith("_") and isinstance(thing, FunctionType | property | classmethod):
                    yield public, member


def test_llms_txt_is_up_to_date() -> None:
    """`python -m tests.docs.llms` brings it up to date."""
    assert llms.FILE.read_text() == llms.text()


def test_every_page_is_in_llms_txt() -> None:
    """What is not listed is not found."""
    pages = {str(page.relative_to(llms.DOCS)) for page in llms.DOCS.glob("**/*.md")} - {"index.md"}
    listed = re.findall(r"\]\(([^)]+)\)", llms.text())
    assert sorted(listed) == sorted(pages)


def test_the_guide_lists_its_pages_in_the_order_of_the_site() -> None:
    """Whoever reads on comes to the next page of the list."""
    order = re.findall(r"^guide/(\S+)$", llms.INDEX.read_text(), flags=re.MULTILINE)
    listed = re.findall(r"^\d+\. \[[^\]]+\]\((\S+)\.md\)", llms.GUIDE.read_text(), flags=re.MULTILINE)
    assert [page for page in order if page != "README"] == listed


def test_everything_public_is_in_the_reference() -> None:
    """An import that no page names is a secret."""
    described = re.findall(r"^\.\. auto\w+:: (\w+)$", API, flags=re.MULTILINE)
    assert sorted([*described, "signals"]) == sorted(celery_reactive.__all__)
    for_tests = re.findall(r"^\.\. auto\w+:: celery_reactive\.testing\.(\w+)$", API, flags=re.MULTILINE)
    assert sorted(for_tests) == sorted(testing.__all__)


def test_everything_that_a_call_returns_is_in_the_reference() -> None:
    """With its fields, however deep, though nobody imports it."""
    described = set(re.findall(r"^\.\. autoclass:: (?:celery_reactive\.[\w.]+\.)?(\w+)$", API, flags=re.MULTILINE))
    hidden = set(re.findall(r"^   :exclude-members: (.*)$", API, flags=re.MULTILINE)[0].split(", "))
    public = [vars(owner)[name] for owner, name in members() if owner is Reactive and name not in hidden]
    calls = [getattr(one, "fget", None) or getattr(one, "__func__", one) for one in public]
    returned = {found for call in calls for found in ours_in(typing.get_type_hints(call).get("return"))}
    assert sorted(one.__qualname__ for one in returned if one.__qualname__ not in described) == []
    assert len(returned) > 10


def ours_in(kind: Any) -> Iterator[type]:
    """Yield the classes of the package in an annotation, and those in their fields."""
    for argument in typing.get_args(kind):
        yield from ours_in(argument)
    if inspect.isclass(kind) and kind.__module__.startswith("celery_reactive."):
        yield kind
        fields = typing.get_type_hints(kind).values() if dataclasses.is_dataclass(kind) else ()
        for field in fields:
            yield from ours_in(field)


@pytest.mark.parametrize("name", celery_reactive.__all__)
def test_everything_public_says_what_it_is(name: str) -> None:
    """The reference is made of these words."""
    public = getattr(celery_reactive, name)
    assert isinstance(public, str) or (inspect.getdoc(public) or "").strip()


@pytest.mark.parametrize(("owner", "member"), list(members()), ids=lambda one: getattr(one, "__name__", one))
def test_everything_that_can_be_called_or_asked_says_what_it_does(owner: type, member: str) -> None:
    """A method or a property by its own docstring; a plain field is shown with its type."""
    assert (inspect.getdoc(vars(owner)[member]) or "").strip()


def test_every_function_that_raises_what_is_ours_says_so() -> None:
    """What an error means for the caller is in the docstring of what raises it."""
    for name in ("Reactive", "TaskContext"):
        for member, function in vars(getattr(celery_reactive, name)).items():
            if inspect.isfunction(function) and not member.startswith("_"):
                source = inspect.getsource(function)
                assert "raise " not in source or "Raises:" in source, f"{name}.{member}"


@pytest.mark.parametrize("command", [pytest.param(one, id=name) for name, one in tables.leaves(reactive)])
def test_every_command_and_option_says_what_it_does(command: click.Command) -> None:
    """`--help` and the reference are made of these words."""
    assert (command.help or "").strip()
    assert [one.name for one in command.params if isinstance(one, click.Option) and not one.help] == []
