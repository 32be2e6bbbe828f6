"""Which files are tested, and where."""

from pathlib import Path

import pytest
from environments import Environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wheel", type=Path, metavar="FILE", help="test this wheel")
    parser.addoption("--sdist", type=Path, metavar="FILE", help="test this source distribution")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for kind in ("wheel", "sdist"):
        if config.getoption(f"--{kind}") is None:
            for item in items:
                if item.path.stem == f"test_{kind}":
                    item.add_marker(pytest.mark.skip(f"no --{kind} given"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"))
