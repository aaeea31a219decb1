"""Memory that goes back: measured in a process of its own, whose allocator nothing else has used."""

import json
import subprocess
import sys
from time import sleep

import pytest

from saishiki.export.freed_memory import returning_memory
from tests.export.conftest import python_environment

BLOCKS, BLOCK_BYTES = 2000, 60_000
SCRIPT = """
import ctypes, json, sys, time
from saishiki.export.freed_memory import returning_memory

def resident():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

libc, blocks, size = ctypes.CDLL(None), int(sys.argv[1]), int(sys.argv[2])
libc.malloc.restype = ctypes.c_void_p
start, pairs = resident(), []
for _ in range(blocks):
    pairs.append((libc.malloc(size), libc.malloc(100)))  # what stays lies behind what goes
    ctypes.memset(pairs[-1][0], 1, size)
for block, _ in pairs:
    libc.free(ctypes.c_void_p(block))
kept = resident() - start
with returning_memory(lambda: None, every_s=0.01):
    time.sleep(0.5)
print(json.dumps([kept, resident() - start]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: other systems' allocators are left as they are")
def test_returning_memory_gives_back_what_lies_between_live_blocks() -> None:
    arguments = [sys.executable, "-P", "-c", SCRIPT, str(BLOCKS), str(BLOCK_BYTES)]
    done = subprocess.run(arguments, env=python_environment(), capture_output=True, text=True, check=True)
    kept, after = json.loads(done.stdout)
    freed = BLOCKS * BLOCK_BYTES
    assert kept > 0.9 * freed  # without it, glibc keeps them
    assert after < 0.2 * freed


def test_returning_memory_calls_until_the_context_ends() -> None:
    calls: list[None] = []
    with returning_memory(lambda: calls.append(None), every_s=0.01):
        sleep(0.3)
    ended = len(calls)
    sleep(0.1)
    assert 2 < ended == len(calls)


def test_returning_memory_ends_where_the_call_fails() -> None:
    calls: list[None] = []
    with pytest.raises(RuntimeError, match="it broke"), returning_memory(lambda: calls.append(None), every_s=0.01):
        raise RuntimeError("it broke")
    ended = len(calls)
    sleep(0.1)
    assert len(calls) == ended
