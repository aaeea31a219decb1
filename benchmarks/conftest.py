"""``pytest benchmarks --benchmark-enable``: the scripts here import each other as plain modules."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
