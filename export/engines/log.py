"""What the builder's log says: its errors, the plan, and the memory that the engine needs."""

import re
import sys
from typing import Any

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+)", re.MULTILINE)
_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
_PLAN = "Layers:"


class BuildLog:
    """Keeps the few messages that matter. With detailed profiling the builder prints the whole plan as one message."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.plan = ""
        self.activation_bytes = 0

    def add(self, message: str, *, is_error: bool) -> None:
        """Takes a message. Errors also go to stderr at once: the builder may crash after them."""
        if is_error:
            self.errors.append(message)
            print(message, file=sys.stderr, flush=True)
        elif message.startswith(_PLAN):
            self.plan += message
        elif found := _ACTIVATION.search(message):
            self.activation_bytes = max(self.activation_bytes, int(found[1]))

    def layers(self) -> int:
        """Layers of the plan, over all profiles."""
        return len(_LAYER.findall(self.plan))

    def fused_attentions(self) -> int:
        """Generated kernels that compute a whole attention, such as ``_gemm_mha_v2``."""
        return sum("mha" in layer["name"] and layer["type"] == "kgen" for layer in _LAYER.finditer(self.plan))


def logger_into(log: BuildLog, trt: Any) -> Any:
    """A TensorRT logger that hands every message to ``log``."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(message, is_error=severity <= trt.ILogger.ERROR)

    return Logger()
