"""Telling a ColorizeDiffusion checkpoint and its generation by its tensors; a file name says nothing here."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from saishiki.models.checkpoints import Checkpoint, CheckpointError, Shapes
from saishiki.models.colorizediffusion.dimensions import UNET, VAE
from saishiki.runtime.pipelines.colorizediffusion import Generation

SKETCH_ENCODER = "control_encoder."
SKETCH_ENCODER_MARKS = (f"{SKETCH_ENCODER}zero_layer.", f"{SKETCH_ENCODER}zero_blocks.")
"""In the sketch encoder of these generations, and in no other family's."""

MARKS: Mapping[Generation, tuple[str, ...]] = {
    "v1.5": ("transformer.embedding", "transformer.layers.", "thresh_embedder."),
    "v2": ("bg_encoder.", "style_encoder.", f"{UNET}warp_modules.", f"{UNET}style_modules."),
}
"""What the keys of a generation begin with that no other has."""

U_NET_MARKS = (f"{UNET}warp_modules.", f"{UNET}style_modules.", "thresh_embedder.")
LORA_MARKS = (".lora_down_fg.", ".lora_up_fg.", ".lora_down_bg.", ".lora_up_bg.")
OTHER_FAMILIES = ("control_encoder.proj_ins.",)

PARTS: Mapping[Generation, tuple[str, ...]] = {
    "v1": (UNET, SKETCH_ENCODER, VAE),
    "v1.5": (UNET, SKETCH_ENCODER, VAE, "transformer.", "thresh_embedder."),
    "v2": (UNET, SKETCH_ENCODER, VAE, "bg_encoder.", "style_encoder."),
}
"""The networks of a generation by their prefix, besides the image encoder."""


@dataclass(frozen=True)
class Recognised:
    """A generation, and the tensors that tell it."""

    generation: Generation
    because: str

    def __str__(self) -> str:
        return f"recognised as ColorizeDiffusion {self.generation} by {self.because}"


def matches(shapes: Shapes) -> bool:
    """Whether a checkpoint with these shapes is, or is a part of, a ColorizeDiffusion v1, v1.5 or v2 one."""
    if _that_begin(shapes, OTHER_FAMILIES):
        return False
    return bool(_that_begin(shapes, (*SKETCH_ENCODER_MARKS, *U_NET_MARKS)) or _with_lora(shapes, UNET))


def recognise(checkpoint: Checkpoint) -> Recognised:
    """The generation of a checkpoint that :func:`matches`.

    Raises ``CheckpointError`` where it holds tensors of two generations, or nothing of a whole network.
    """
    keys = checkpoint.shapes.keys()
    v15, v2 = _evidence(keys, "v1.5"), _evidence(keys, "v2")
    if v15 and v2:
        raise CheckpointError(
            f"{checkpoint.path}: holds tensors of two generations of ColorizeDiffusion, v1.5 ({v15}) and v2 ({v2}); "
            "give a checkpoint as one training run has saved it"
        )
    because = {"v1": "having none of what v1.5 and v2 add", "v1.5": v15, "v2": v2 or "LoRAs in the decoder alone"}
    generation = generation_of(keys)
    found = Recognised(generation, because[generation])
    _check_parts(checkpoint, found)
    return found


def generation_of(keys: Collection[str]) -> Generation:
    """The generation that tensors with these names are most like; :func:`recognise` says what speaks against it."""
    if _evidence(keys, "v1.5"):
        return "v1.5"
    return "v2" if _evidence(keys, "v2") or _with_lora(keys, f"{UNET}output_blocks.") else "v1"


def _evidence(keys: Collection[str], generation: Generation) -> str:
    """The prefixes that tell a generation from the others, those that are there, in words."""
    found = [f"{mark}*" for mark in MARKS[generation] if _that_begin(keys, (mark,))]
    # Only v1.5 has LoRAs outside the decoder.
    if generation == "v1.5" and _with_lora(keys, f"{UNET}input_blocks."):
        found.append("LoRAs in the encoder")
    return ", ".join(found)


def _check_parts(checkpoint: Checkpoint, found: Recognised) -> None:
    absent = [part for part in PARTS[found.generation] if not _that_begin(checkpoint.shapes, (part,))]
    if absent:
        raise CheckpointError(
            f"{checkpoint.path}: {found}, but it holds nothing under {', '.join(absent)}; expected all networks of one "
            "training run: give the whole checkpoint"
        )


def _that_begin(keys: Iterable[str], prefixes: tuple[str, ...]) -> list[str]:
    return [key for key in keys if key.startswith(prefixes)]


def _with_lora(keys: Iterable[str], prefix: str) -> list[str]:
    return [key for key in keys if key.startswith(prefix) and any(mark in key for mark in LORA_MARKS)]
