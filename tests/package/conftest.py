"""Which files are tested, and where."""

from pathlib import Path

import pytest
from environments import Environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wheel", type=Path, metavar="FILE", help="test this wheel")
    parser.addoption("--sdist", type=Path, metavar="FILE", help="test this source distribution")


def tested(config: pytest.Config, option: str) -> Path:
    path: Path | None = config.getoption(option)
    if path is None:
        raise pytest.UsageError(f"{option} says which file to test")
    return path.resolve()


@pytest.fixture(scope="session")
def wheel(pytestconfig: pytest.Config) -> Path:
    return tested(pytestconfig, "--wheel")


@pytest.fixture(scope="session")
def sdist(pytestconfig: pytest.Config) -> Path:
    return tested(pytestconfig, "--sdist")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"))
