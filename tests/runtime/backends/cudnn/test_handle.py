"""A handle's life."""

import pytest

from saishiki.runtime.backends.cudnn.handle import Handle
from saishiki.runtime.errors import BackendError
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend


def test_a_handle_enqueues_on_its_stream_and_is_destroyed_once(played: PlayedFrontend) -> None:
    with Handle(played.cudnn, stream=5) as handle:
        assert handle.value == 77
        handle.close()
        with pytest.raises(ValueError, match="the cuDNN handle is closed"):
            _ = handle.value
    assert played.handles == ["create", "stream 5 of 77", "destroy 77"]


def test_a_handle_without_a_gpu(played: PlayedFrontend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise RuntimeError("cudaGetDeviceCount(&count) != cudaSuccess")

    monkeypatch.setattr(played, "create_handle", refuse)
    with pytest.raises(BackendError, match=r"cuDNN 9.19.0 does not start on this GPU: cudaGetDeviceCount"):
        Handle(played.cudnn, stream=5)


def test_a_handle_that_takes_no_stream_is_destroyed(played: PlayedFrontend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, stream: int) -> None:
        raise RuntimeError("CUDNN_STATUS_BAD_PARAM")

    monkeypatch.setattr(played, "set_stream", refuse)
    with pytest.raises(BackendError, match="CUDNN_STATUS_BAD_PARAM"):
        Handle(played.cudnn, stream=5)
    assert played.handles == ["create", "destroy 77"]
