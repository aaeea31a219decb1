"""The benchmarks are scripts beside each other; their tests import them as they import one another."""

import os
import sys
from pathlib import Path

from saishiki.runtime.backends.cuda import driver_problem

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
if driver_problem() is not None:
    os.environ["TRITON_INTERPRET"] = "1"
