"""cuDNN's handle on a GPU."""

from types import TracebackType
from typing import Self

from saishiki.runtime.backends.cudnn.libraries import Cudnn
from saishiki.runtime.errors import BackendError


class Handle:
    """A handle that enqueues on one stream, for one thread at a time: callers hold the lock of the stream's device.

    The device must be current in the calling thread when it is made and closed; close it before the stream.
    Raises ``BackendError`` where cuDNN finds no GPU.
    """

    def __init__(self, cudnn: Cudnn, stream: int) -> None:
        self._frontend = cudnn.frontend
        self._value: int | None = None
        try:
            self._value = self._frontend.create_handle()
            self._frontend.set_stream(self._value, stream)
        except cudnn.errors as error:
            self.close()
            raise BackendError(f"cuDNN {cudnn.version} does not start on this GPU: {error}") from error

    @property
    def value(self) -> int:
        """What cuDNN's functions take; raises ``ValueError`` when it is closed."""
        if self._value is None:
            raise ValueError("the cuDNN handle is closed")
        return self._value

    def close(self) -> None:
        """Destroys the handle; plans that were made with it cannot run any more."""
        if self._value is not None:
            self._frontend.destroy_handle(self._value)
            self._value = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
