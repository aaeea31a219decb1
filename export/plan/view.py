"""A tensor of the graph as a way to read a buffer.

Transposes, reshapes, slices, expansions and nearest-neighbour upsampling of a tensor move nothing: they are the same
buffer read with other strides. An operation that needs its operand dense and in one order asks whether it is.
"""

from dataclasses import dataclass, replace

from saishiki.export.plan.dims import ONE, ZERO, Dim, product
from saishiki.runtime.plan.extents import Strided


@dataclass(frozen=True)
class Run:
    """So many elements, so far apart from one another."""

    length: Dim
    stride: Dim


Axis = tuple[Run, ...]
"""The runs of one axis, the outermost first; none where its length is 1."""


@dataclass(frozen=True)
class View:
    """``buffer`` read from ``offset`` on.

    Args:
        dtype: what the tensor is in the graph; where the buffer is of another, what is read is cast.
        stored: the dtype of the buffer.
    """

    buffer: str
    dtype: str
    stored: str
    axes: tuple[Axis, ...]
    offset: Dim = ZERO

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Its dims."""
        return tuple(product(run.length for run in axis) for axis in self.axes)

    @property
    def is_cast(self) -> bool:
        """Whether reading it casts."""
        return self.dtype != self.stored

    def cast(self, dtype: str) -> "View":
        """The same, read in a dtype."""
        return replace(self, dtype=dtype)

    def transpose(self, order: tuple[int, ...]) -> "View":
        """Its axes in another order."""
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def reshape(self, dims: tuple[Dim, ...]) -> "View":
        """Its elements in rows of other lengths; raises ``ValueError`` where that cannot be done by strides alone."""
        return replace(self, axes=_regrouped([run for axis in self.axes for run in axis], dims))

    def slice(self, axis: int, start: Dim, length: Dim) -> "View":
        """A part of an axis; raises ``ValueError`` where the axis is read in more than one run."""
        runs = self.axes[axis]
        if len(runs) > 1:
            raise ValueError(f"cannot take a part of an axis of {len(runs)} runs: {self}")
        stride = runs[0].stride if runs else ZERO
        axes = (*self.axes[:axis], _axis(Run(length, stride)), *self.axes[axis + 1 :])
        return replace(self, axes=axes, offset=self.offset + start * stride)

    def insert(self, axis: int) -> "View":
        """One more axis, of length 1."""
        return replace(self, axes=(*self.axes[:axis], (), *self.axes[axis:]))

    def remove(self, axis: int) -> "View":
        """Without an axis of length 1; raises ``ValueError`` for a longer one."""
        if self.axes[axis]:
            raise ValueError(f"axis {axis} of {self} is longer than 1")
        return replace(self, axes=(*self.axes[:axis], *self.axes[axis + 1 :]))

    def expand(self, dims: tuple[Dim, ...]) -> "View":
        """Broadcast to dims, axes of length 1 repeated, new ones in front."""
        view = self
        for _ in range(len(dims) - len(self.axes)):
            view = view.insert(0)
        repeated = tuple(axis or _axis(Run(dim, ZERO)) for axis, dim in zip(view.axes, dims, strict=True))
        result = replace(view, axes=repeated)
        if result.shape != dims:
            raise ValueError(f"{self.shape} does not broadcast to {dims}")
        return result

    def repeat(self, axis: int, times: int) -> "View":
        """Each element of an axis so many times in succession."""
        runs = (*self.axes[axis], *_axis(Run(Dim.of(times), ZERO)))
        return replace(self, axes=(*self.axes[:axis], runs, *self.axes[axis + 1 :]))

    def tile(self, axis: int, times: int) -> "View":
        """All of an axis so many times in succession."""
        runs = (*_axis(Run(Dim.of(times), ZERO)), *self.axes[axis])
        return replace(self, axes=(*self.axes[:axis], runs, *self.axes[axis + 1 :]))

    def strided(self) -> Strided:
        """As an operand. An axis of several runs becomes several axes."""
        runs = [run for axis in self.axes for run in (axis or (Run(ONE, ZERO),))]
        shape, strides = tuple(str(run.length) for run in runs), tuple(str(run.stride) for run in runs)
        return Strided(self.buffer, shape, strides, str(self.offset))


def dense(buffer: str, dtype: str, dims: tuple[Dim, ...]) -> View:
    """All of a buffer, in its own order."""
    axes: list[Axis] = []
    stride = ONE
    for dim in reversed(dims):
        axes.insert(0, _axis(Run(dim, stride)))
        stride = stride * dim
    return View(buffer, dtype, dtype, tuple(axes))


def _axis(run: Run) -> Axis:
    return () if run.length == ONE else (run,)


def _regrouped(runs: list[Run], dims: tuple[Dim, ...]) -> tuple[Axis, ...]:
    """The runs dealt out to axes of the given lengths, split where one is longer than its axis needs.

    Neighbours that are one run in truth are taken as one where that helps.
    """
    left = list(runs)
    axes = []
    for dim in dims:
        axis: list[Run] = []
        missing = dim
        while missing != ONE:
            if not left:
                raise ValueError(f"{[str(d) for d in dims]} holds more elements than there are")
            run = left.pop(0)
            if run.length == missing or missing.is_multiple_of(run.length):
                taken, rest = run, None
            elif run.length.is_multiple_of(missing):
                inner = run.length / missing
                taken, rest = Run(missing, run.stride * inner), Run(inner, run.stride)
            elif left and run.stride == left[0].stride * left[0].length:
                left[0] = Run(run.length * left[0].length, left[0].stride)
                continue
            else:
                raise ValueError(f"a run of {run.length} is not to be divided into rows of {missing}")
            axis.append(taken)
            missing = missing / taken.length
            if rest is not None:
                left.insert(0, rest)
        axes.append(_merged(axis))
    if left:
        raise ValueError(f"{[str(d) for d in dims]} holds fewer elements than there are")
    return tuple(axes)


def _merged(axis: list[Run]) -> Axis:
    """Neighbours that are one run in truth, as one."""
    merged: list[Run] = []
    for run in axis:
        if merged and merged[-1].stride == run.stride * run.length:
            last = merged.pop()
            merged.append(Run(last.length * run.length, run.stride))
        else:
            merged.append(run)
    return tuple(merged)
