"""Every block of Python in README and guide runs, and declares what it declares."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from celery import Celery, _state

import celery_reactive
from celery_reactive import Reactive
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, chains_of

CHAINS = [chain for page in PAGES for chain in chains_of(page)]


@pytest.fixture
def own_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps and shared tasks made in the test are no other test's."""
    monkeypatch.setattr(_state, "_apps", weakref.WeakSet())
    monkeypatch.setattr(_state, "_on_app_finalizers", set())
    monkeypatch.setattr(_state._tls, "current_app", None)


@pytest.mark.usefixtures("own_celery")
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain[0]))
def test_a_block_of_python_runs(chain: list[Block]) -> None:
    """What a user copies works."""
    public = {name: getattr(celery_reactive, name) for name in celery_reactive.__all__}
    namespace: dict[str, Any] = {"__name__": "proj", "app": Celery("proj"), **public}
    for block in chain:
        if block.raises is None:
            run(block, namespace)
        else:
            assert_raises(block, namespace)
    if chain[-1].raises is None:
        assert_declared(namespace["app"], "".join(block.code for block in chain))


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block; a traceback names its page and line."""
    code = compile("\n" * (block.line - 1) + block.code, str(block.page.relative_to(ROOT)), "exec")
    exec(code, namespace)  # noqa: S102 -- the repository's own pages


def assert_raises(block: Block, namespace: dict[str, Any]) -> None:
    """Check that a block raises what its page says, in the words its page says."""
    assert block.raises is not None
    with pytest.raises(getattr(celery_reactive, block.raises)) as raised:
        run(block, namespace)
    assert str(raised.value) == " ".join(block.message.split())


def assert_declared(app: Celery, code: str) -> None:
    """Check that the app has as many reactive tasks as the code declares, and settings that can be read."""
    app.finalize()
    declared = list(Reactive.of(app).registry)
    assert len(declared) == code.count("@reactive_task(")
    assert Reactive.of(app).runtime.settings.mongodb_url


def test_the_pages_have_code() -> None:
    """A change of the marks must not leave the pages unread."""
    fences = sum(page.read_text().count("```python\n") for page in PAGES)
    assert sum(len(blocks_of(page)) for page in PAGES) == fences > 20


def test_the_readmes_example_is_about_thirty_lines() -> None:
    """It promises so."""
    example = blocks_of(PAGES[0])[0]
    assert example.code.count("\n") <= 30
