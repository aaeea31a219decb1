"""What a scan of a whole network's activations decides: which of its modules and submodules stay in fp32."""

import torch

from saishiki.export.drawings import draw_pairs
from saishiki.export.precision import fp32_modules, scan_ranges
from saishiki.export.progress import Observer
from saishiki.models import Family, LoadedModel
from saishiki.runtime.manifest import PrecisionPolicy
from saishiki.runtime.signature import Profile, multiples_of

SCAN_PX = 64


def precision_policy(model: LoadedModel, family: Family, observer: Observer) -> PrecisionPolicy:
    """The policy for the modules that go to fp16; names of submodules carry their module in front."""
    multiples = multiples_of(model.signatures.values())
    chosen = {"batch": 4, "steps": 10} | {
        side: _round_up(SCAN_PX, multiples.get(side, 1)) for side in ("height", "width")
    }
    sizes = family.complete(Profile(chosen, chosen, chosen)).opt
    pictures = draw_pairs(sizes["batch"], sizes["height"], sizes["width"], seed=0)
    kept: list[str] = []
    peaks = {}
    for done, (name, module) in enumerate(model.modules.items()):
        observer.part(name, done, len(model.modules))
        if name in family.fp32_modules:
            kept.append(name)
            continue
        with torch.inference_mode():
            inputs = model.probe(name, sizes, *pictures)
        scan = scan_ranges(module, [inputs])
        where, largest = scan.peak()
        peaks[f"{name}.{where}".rstrip(".")] = largest
        kept += [f"{name}.{submodule}".rstrip(".") for submodule in fp32_modules(scan)]
    peak = max(peaks, key=lambda name: peaks[name])
    return PrecisionPolicy("fp16", tuple(kept), peaks[peak], peak)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
