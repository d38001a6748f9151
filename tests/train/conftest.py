"""What the trainer's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcgemma.train.data.prepared import PreparedData
from tests.train.launch import Run


@pytest.fixture(scope="session", autouse=True)
def ranks_end_with_the_session() -> Iterator[None]:
    yield
    if Run.forker is not None:
        Run.forker.end()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """The tiny recipe's data: a tokenizer of 400 tokens, and a few rows."""
    run = Run(tmp_path_factory.mktemp("prepared") / "run")
    run.prepare()
    return PreparedData.open(run.folder.prepared_dir)
