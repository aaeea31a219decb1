"""Builds straight into a file: an SDXL engine is larger than the memory that is left beside its build."""

from pathlib import Path
from typing import Any, BinaryIO

from saishiki.export.engines.request import EngineBuildError


def serialize_to_file(network: Any, config: Any, path: Path, *, builder: Any, trt: Any) -> bool:
    """Builds the network into ``path``; False where the builder fails. Raises ``EngineBuildError`` for a full disk."""
    failures: list[OSError] = []
    try:
        with path.open("wb") as file:
            stream = _stream_into(file, failures, trt)
            built = bool(builder.build_serialized_network_to_stream(network, config, stream))
    except OSError as error:
        failures.append(error)
    if failures:
        raise EngineBuildError(f"the engine cannot be written: {failures[0].strerror}") from failures[0]
    return built


def _stream_into(file: BinaryIO, failures: list[OSError], trt: Any) -> Any:
    class Stream(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            # The builder swallows exceptions of this method, and reports success.
            try:
                return file.write(data)
            except OSError as error:
                failures.append(error)
                return 0

    return Stream()
