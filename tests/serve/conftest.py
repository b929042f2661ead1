"""The model that the server's tests ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quecc_jax.generate.engine import Engine
from quecc_jax.serve.own_backend import own_backend
from tests.commands.talker import save_images, tiny_engine
from tests.serve.serving import front_of, served


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Engine:
    return tiny_engine(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[Path]:
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def port(engine) -> Iterator[int]:
    """Where the tiny model is served."""
    with served(front_of(own_backend(engine))) as found:
        yield found
