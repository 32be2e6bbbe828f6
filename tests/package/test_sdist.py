"""The source distribution: what is in it, and that hotloop can be built from it."""

import tarfile
from pathlib import Path

import pytest
from environments import PATIENCE, Environment, check

pytestmark = pytest.mark.timeout(PATIENCE)


def test_files(sdist: Path) -> None:
    """All that a build needs, and nothing else."""
    with tarfile.open(sdist) as archive:
        paths = [Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()]
    assert {path.parts[0] for path in paths} == {
        *("Cargo.lock", "Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "PKG-INFO", "README.md"),
        *("build.rs", "pyproject.toml", "python", "src"),
    }
    assert {path.suffix for path in paths if path.parts[0] in ("python", "src")} == {
        ".py",
        ".pyi",
        ".rs",
        ".typed",
    }


def test_twine_accepts_it(sdist: Path) -> None:
    check("twine", "check", "--strict", sdist)


def test_it_can_be_built_and_works(environment: Environment, sdist: Path) -> None:
    environment.install(sdist)
    environment.try_everything()
