"""A fresh process that makes one image as a service would, and prints when it got how far.

Where it is told so, it loads and closes the bundle once before, so that libraries and files are warm.

Run by its path and with ``-P``, so that nothing of Saishiki is imported before the clock says so.
"""

import time

ENTERED_NS = time.monotonic_ns()


def main() -> None:
    """Prints the stages as JSON: nanoseconds of the system's monotonic clock, and the peak resident bytes."""
    import json
    import sys
    from pathlib import Path

    bundle, backend, device, precision, folder, steps, seed, libraries = sys.argv[1:]
    from saishiki.runtime import Colorizer

    def load() -> Colorizer:
        return Colorizer.load(bundle, backend=backend, device=device, precision=precision)  # type: ignore[arg-type]

    marks = {"interpreter": ENTERED_NS, "import": time.monotonic_ns()}
    if libraries == "warm":
        load().close()
        marks["earlier load"] = time.monotonic_ns()
    with load() as colorizer:
        marks["load"] = time.monotonic_ns()
        pictures = Path(folder, "sketch.png"), Path(folder, "reference.png")
        colorizer(*pictures, steps=int(steps), seed=int(seed))
        marks["first image"] = time.monotonic_ns()
    print(json.dumps({"marks_ns": marks, "peak_rss_bytes": _peak_rss_bytes()}))


def _peak_rss_bytes() -> int | None:
    """The largest resident size of this process; the kernel's ``ru_maxrss`` would count its parent's too."""
    from pathlib import Path

    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


if __name__ == "__main__":
    main()
