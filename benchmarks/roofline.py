"""The least time some work can take on a GPU: the larger of operations over peak rate and bytes over bandwidth.

No launch overhead and no latency is in it, so nothing runs faster, and small cases run much slower. Where a part of the
bytes stays in the L2 cache between two launches, the time over all bytes is not a floor but what device memory alone
would allow.
"""

from dataclasses import dataclass

TERA = 10**12


@dataclass(frozen=True)
class Gpu:
    """A GPU's peaks, dense, as its vendor states them.

    Args:
        target: its compute capability, such as ``sm89``.
        matrix_flops: fp16 products summed in fp32 on the tensor cores, per second.
        vector_flops: fp32 outside them, per second.
        bandwidth: bytes of device memory per second.
    """

    name: str
    target: str
    matrix_flops: float
    vector_flops: float
    bandwidth: float
    source: str


GPUS = (
    Gpu(
        "RTX 4090",
        "sm89",
        165.2 * TERA,
        82.6 * TERA,
        1.008 * TERA,
        "NVIDIA Ada GPU architecture whitepaper 1.1, appendix A",
    ),
    Gpu("H200", "sm90", 989 * TERA, 67 * TERA, 4.8 * TERA, "NVIDIA H200 datasheet (SXM)"),
)


@dataclass(frozen=True)
class Work:
    """What an op does: operations, bytes of device memory it must load and store, and launches."""

    matrix_flops: int
    vector_flops: int
    nbytes: int
    launches: int


@dataclass(frozen=True)
class Roofline:
    """The least time in microseconds, and what it is spent on: ``matrix``, ``vector`` or ``memory``."""

    us: float
    bound: str


def roofline(work: Work, *, matrix_flops: float, vector_flops: float, bandwidth: float) -> Roofline:
    """The roofline of some work on peaks given per second."""
    times = {
        "matrix": work.matrix_flops / matrix_flops,
        "vector": work.vector_flops / vector_flops,
        "memory": work.nbytes / bandwidth,
    }
    bound = max(times, key=times.__getitem__)
    return Roofline(times[bound] * 1e6, bound)


def roofline_on(gpu: Gpu, work: Work) -> Roofline:
    """The roofline by the vendor's peaks."""
    return roofline(work, matrix_flops=gpu.matrix_flops, vector_flops=gpu.vector_flops, bandwidth=gpu.bandwidth)
