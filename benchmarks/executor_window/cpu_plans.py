"""``python benchmarks/executor_window/cpu_plans.py -o plans.json``: cuDNN's plans of the network, made without a GPU.

For ``gpu_battery.py --plans plans.json``, which tries them on the GPU they were made for. Needs nvidia-cudnn-cu13 (the
version of the machine with the GPU), nvidia-cublas and nvidia-cudnn-frontend, and a ``libcuda.so.1`` to link: where
there is no driver, the CUDA toolkit's ``lib64/stubs`` on ``LD_LIBRARY_PATH``, as nothing of it is called.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from battery.part import Options

from executor_window.cudnn_convs import Session, plan_conv
from executor_window.cudnn_library import PROPERTIES, import_cudnn, why_no_cudnn, written_properties
from executor_window.layers import animediffusion_layers, by_worth
from executor_window.operands import BIAS, RESIDUAL_BIAS
from executor_window.plan_file import PlanFile, SavedPlan, write_plans


def planned(session: Session, sm: int, options: Options) -> PlanFile:
    """The first choice of every distinct convolution that can be built."""
    plans = []
    for conv in by_worth(animediffusion_layers(options)):
        variant = RESIDUAL_BIAS if conv.residual else BIAS
        graph = plan_conv(session, conv.padded, variant, precompiled=True)
        graph.graph.build_plans()
        plans.append(SavedPlan(conv, variant, bytes(graph.graph.serialize())))
    cudnn = session.cudnn
    made_by = {"cudnn": cudnn.backend_version_string(), "frontend": cudnn.__version__}
    return PlanFile(sm, made_by, tuple(plans))


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--sm", type=int, choices=sorted(PROPERTIES), default=90, help="90: H200; 89: RTX 4090")
    given = parser.parse_args(arguments)
    if why := why_no_cudnn():
        print(f"error: {why}", file=sys.stderr)
        return 1
    cudnn = import_cudnn()
    setup = {"device_property": written_properties(cudnn, given.sm), "sm_version": given.sm}
    file = planned(Session(cudnn, setup), given.sm, Options(dry_run=False))
    write_plans(file, given.output)
    nbytes = sum(len(saved.plan) for saved in file.plans)
    print(f"{given.output}: {len(file.plans)} plans, {nbytes} bytes, for sm{given.sm} by {file.made_by}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
