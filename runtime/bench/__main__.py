"""``python -m saishiki.runtime.bench`` is ``saishiki bench``."""

from saishiki.runtime.bench.command import bench

if __name__ == "__main__":
    bench(prog_name="python -m saishiki.runtime.bench")
