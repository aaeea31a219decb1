import pytest

from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend


@pytest.fixture
def played() -> PlayedFrontend:
    return PlayedFrontend()
