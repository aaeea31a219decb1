from saishiki.runtime.plan import Buffer, Plan
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import Copy, Pointwise
from saishiki.runtime.plan.phases import split_phases

ROW = ("4",)


def part(name, offset="0", length="4"):
    return Strided(name, (length,), ("1",), offset)


def plan_of(*ops):
    buffers = {name: Buffer("float32", ROW) for op in ops for name in op.writes() if name != "y"}
    return Plan(1, "float32", buffers, {}, {}, tuple(ops))


def add(out, left, right):
    return Pointwise(function="add", inputs=(part(left), part(right)), out=part(out))


def copied(out, source, offset="0", length="4"):
    return Copy((part(source, length=length),), 0, part(out, offset, length))


def test_what_depends_on_constants_alone_comes_first():
    plan = plan_of(add("a", "x", "x"), copied("b", "style"), add("c", "b", "style"), add("y", "a", "c"))
    phases = split_phases(plan, {"x"})
    assert [op.writes() for op in phases.plan.ops] == [("b",), ("c",), ("a",), ("y",)]
    assert phases.constant == 2
    assert phases.kept == {"c"}, "b is needed by constants alone"


def test_outputs_are_computed_in_every_run():
    phases = split_phases(plan_of(copied("b", "style"), copied("y", "b")), {"x"})
    assert phases.constant == 1
    assert phases.kept == {"b"}


def test_a_buffer_of_which_a_part_changes_is_written_whole():
    plan = plan_of(copied("a", "style", "0", "2"), copied("a", "x", "2", "2"), copied("y", "a"))
    phases = split_phases(plan, {"x"})
    assert phases.constant == 0
    assert phases.plan.ops == plan.ops


def test_where_everything_changes_nothing_moves():
    plan = plan_of(add("a", "x", "style"), copied("y", "a"))
    assert split_phases(plan, {"x", "style"}).plan == plan
