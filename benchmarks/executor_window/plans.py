"""Whether plans that were made on a CPU from written-down properties run here, and as fast as one made here.

Rows: ``what`` is ``properties`` (``differ``: where the device says something else), or ``plan made on a CPU`` with
``layer``, ``variant``, error, times and ``here_us``, the p50 of the first choice made on this machine.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from battery.clock import each_us
from battery.network import prepare_inference
from battery.part import Options, Row, SkippedError

from executor_window.convs import Check, runs_of, versions
from executor_window.cudnn_convs import Session, first_line, open_session, pack_of, plan_conv, set_stream
from executor_window.cudnn_library import PROPERTIES, compare_properties, property_values
from executor_window.operands import Operands, Variant, draw_operands
from executor_window.plan_file import SavedPlan, read_plans

WHAT = "plan made on a CPU"
CUDNN_DEVICE = 0


def measure(options: Options) -> Iterator[Row]:
    """The properties where cuDNN is there, and the plans where a file of them was carried."""
    prepare_inference(options)
    session = open_session(options)
    if options.device == "cuda":
        yield properties_row(session.cudnn, *torch.cuda.get_device_capability())
    if options.plans is None:
        raise SkippedError("needs --plans FILE, made by executor_window/cpu_plans.py")
    file = read_plans(options.plans)
    yield {"what": "plans", "sm": file.sm, "made_by": file.made_by, "here": versions(session)}
    for saved in file.plans:
        labels = {"what": WHAT, "layer": saved.conv.name, "variant": saved.variant.name}
        try:
            yield {**labels, **plan_row(session, saved, options)}
        except Exception as error:  # cuDNN refuses by exceptions of its own
            yield {**labels, "unavailable": first_line(error)}


def properties_row(cudnn: Any, major: int, minor: int) -> Row:
    """What this device says otherwise than the table of properties."""
    sm = 10 * major + minor
    if sm not in PROPERTIES:
        return {"what": "properties", "unavailable": f"none are written down for sm{sm}"}
    own = json.loads(cudnn.create_device_properties(CUDNN_DEVICE).serialize())
    return {"what": "properties", "sm": sm, "differ": compare_properties(own, property_values(sm))}


def plan_row(session: Session, saved: SavedPlan, options: Options) -> Row:
    """Reads the plan back and runs it, then the first choice made here."""
    sets = draw_operands(saved.conv.padded, options.device)
    check = Check(saved.conv, saved.variant, sets, options)
    graph = session.cudnn.pygraph(handle=session.handle)
    graph.deserialize(session.handle, list(saved.plan))
    workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=options.device)
    row = check.row([_run(session, graph, operands, saved.variant, workspace) for operands in sets])
    own = plan_conv(session, saved.conv.padded, saved.variant, precompiled=True)
    first = next(own.built(options.device))
    here = each_us(runs_of(own, sets, first), options)
    return {**row, "plan_here": own.name(first), "here_us": here.get("p50_us")}


def _run(
    session: Session, graph: Any, operands: Operands, variant: Variant, workspace: torch.Tensor
) -> Callable[[], None]:
    pack = pack_of(operands, variant)

    def run() -> None:
        set_stream(session)
        graph.execute(pack, workspace.data_ptr(), session.handle)

    return run
