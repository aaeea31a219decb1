"""Guidance windows: in which of a run's evaluations the reference is off."""

from itertools import accumulate
from operator import or_

from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.variants import Generation
from saishiki.runtime.signature import Array

LAST_TIMESTEP = 999


def closed_evaluations(timesteps: Array, options: ColorizeDiffusionOptions, generation: Generation) -> tuple[bool, ...]:
    """For every evaluation at timesteps (E,), whether the reference is off: a zero context in all rows.

    The share of the run at timestep t is ``1 - t / 999``. As published v1 never opens a window again that has closed
    once, and the other generations ignore windows.
    """
    shares = [1 - float(t) / LAST_TIMESTEP for t in timesteps]
    closed = [_is_closed(share, options) for share in shares]
    if options.windows == "named":
        return tuple(closed)
    return tuple(accumulate(closed, or_)) if generation == "v1" else (False,) * len(closed)


def _is_closed(share: float, options: ColorizeDiffusionOptions) -> bool:
    # At its end a run lies on 0 and 1 only up to rounding, so the widest limits do not limit.
    early = options.guidance_start > 0 and share < options.guidance_start
    late = options.guidance_end < 1 and share > options.guidance_end
    return early or late or options.no_guidance_start <= share <= options.no_guidance_end
