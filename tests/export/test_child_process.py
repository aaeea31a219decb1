import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

WORKER = """
from time import sleep
from saishiki.export.child_process import die_with_parent
die_with_parent()
print(flush=True)
sleep(60)
"""
PARENT = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
print(worker.pid, flush=True)
input()
"""


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_die_with_parent_ends_a_build_whose_export_was_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = monotonic() + 10
    while is_running(worker) and monotonic() < deadline:
        sleep(0.02)
    assert not is_running(worker)
