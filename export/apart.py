"""``python -m saishiki.export.apart``: runs PyTorch for an export in a process of its own, whose memory then is free.

What a network of gigabytes leaves behind, in PyTorch's and the C library's hands, would otherwise stand beside the
builder of engines, which needs as much again. The child reads a pickled request from stdin and answers on stdout:
pickles of what the observer is told, and of the manifest or of the error that ended it.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import IO, Any

from saishiki.export.bundle_writer import BundleDraft
from saishiki.export.child_process import die_with_parent, how_it_ended
from saishiki.export.freed_memory import return_freed_memory
from saishiki.export.progress import Observer, Stage
from saishiki.export.request import ExportRequest
from saishiki.runtime.errors import SaishikiError
from saishiki.runtime.manifest import Manifest

# -P: like this process, the child must not import what happens to lie in the working directory.
CHILD = (sys.executable, "-P", "-m", "saishiki.export.apart")

_DONE, _FAILED = "done", "failed"


def manifest_from_checkpoint_apart(
    request: ExportRequest, draft: BundleDraft, observer: Observer, *, child: Sequence[str] = CHILD
) -> Manifest:
    """:func:`saishiki.export.from_checkpoint.manifest_from_checkpoint` in a process of its own.

    Args:
        child: the command that runs it.

    Raises what it raises, and ``SaishikiError`` where the process dies.
    """
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin, "a pipe"
        assert process.stdout, "a pipe"
        try:
            _send(process.stdin, (request, draft))
            return _answer(process.stdout, observer)
        except (EOFError, BrokenPipeError):
            died = how_it_ended(process.wait())
            raise SaishikiError(f"the process that runs PyTorch {died}; its messages are above") from None
        finally:
            process.kill()


def _send(stream: IO[bytes], message: Any) -> None:
    pickle.dump(message, stream)
    stream.flush()


def _answer(stream: IO[bytes], observer: Observer) -> Manifest:
    """The manifest; until then the observer is told what the child's is told."""
    while True:
        kind, *content = pickle.load(stream)
        if kind == _DONE:
            (manifest,) = content
            assert isinstance(manifest, Manifest)
            return manifest
        if kind == _FAILED:
            raise content[0]
        getattr(observer, kind)(*content)


class _Relayed:
    """An observer in the child: says everything to the parent's."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def stage(self, stage: Stage) -> None:
        _send(self._stream, ("stage", stage))

    def part(self, name: str, done: int, total: int) -> None:
        _send(self._stream, ("part", name, done, total))

    def note(self, text: str) -> None:
        _send(self._stream, ("note", text))


def main() -> None:
    """The child."""
    die_with_parent()
    # Ctrl-C reaches both; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return_freed_memory()
    with _private_stdout() as answers:
        request, draft = pickle.load(sys.stdin.buffer)
        try:
            _send(answers, (_DONE, _described(request, draft, _Relayed(answers))))
        except Exception as error:
            error.add_note(f"in the process that runs PyTorch:\n{traceback.format_exc()}")
            _send(answers, (_FAILED, error))


def _private_stdout() -> IO[bytes]:
    """The stream that was stdout; whatever a library prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _described(request: ExportRequest, draft: BundleDraft, observer: Observer) -> Manifest:
    from saishiki.export.from_checkpoint import manifest_from_checkpoint

    return manifest_from_checkpoint(request, draft, observer)


if __name__ == "__main__":
    main()
