"""The parts of ``bench_kernels.py``: what is measured, how it is counted, tested and timed, and how it is shown."""
