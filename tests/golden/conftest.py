"""The option of ``make golden``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --write-golden."""
    parser.addoption("--write-golden", action="store_true", help="write tests/golden/expected anew")


@pytest.fixture(autouse=True)
def _no_models_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/nobody")
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def is_writing(request: pytest.FixtureRequest) -> bool:
    """Tell whether the golden files are to be written; without this folder on the command line they never are."""
    return bool(request.config.getoption("--write-golden", default=False))
