"""Checkpoints that other projects wrote, with what those projects computed from them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a copy of one of the archives' directories, by kind and name."""

    def extract(kind: str, name: str) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        with zipfile.ZipFile(FIXTURES / f"{kind}.zip") as archive:
            archive.extractall(directory, [member for member in archive.namelist() if member.startswith(f"{name}/")])
        return directory / name

    return extract
