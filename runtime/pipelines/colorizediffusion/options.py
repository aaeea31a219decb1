"""The options of ColorizeDiffusion, with the published tool's defaults."""

from dataclasses import dataclass
from typing import Annotated, Any, get_args

from saishiki.runtime.images import ImageSource
from saishiki.runtime.options import OptionSpec
from saishiki.runtime.pipelines.colorizediffusion.sketch import SKETCH_MODES, SketchMode
from saishiki.runtime.pipelines.colorizediffusion.variants import Guidance, Mode

Pictures = ImageSource | list[ImageSource] | None


@dataclass(frozen=True)
class ColorizeDiffusionOptions:
    """How to colour; every field says what it does in its own help, which the command line and the documentation show.

    Source of names and defaults: the published user interface (arXiv 2401.01456, 2502.19937 and their repository).
    """

    mode: Annotated[
        Mode,
        OptionSpec(
            "choice",
            "What of the reference acts where. background and full need a sketch mask, and a reference mask or a "
            "background picture; the foreground modes need a sketch mask.",
            choices=get_args(Mode),
        ),
    ] = "vanilla"
    background: Annotated[
        Pictures, OptionSpec("picture", "A picture for the background in place of the reference's.")
    ] = None
    sketch_mask: Annotated[
        Pictures, OptionSpec("picture", "Where the sketch's foreground is: white on black, of the sketch's size.")
    ] = None
    reference_mask: Annotated[
        Pictures, OptionSpec("picture", "Where the reference's foreground is: white on black, of the reference's size.")
    ] = None
    sketch_mask_network: Annotated[
        Any, OptionSpec("file", "An ONNX network that finds the sketch's foreground where no sketch mask is given.")
    ] = None
    reference_mask_network: Annotated[
        Any,
        OptionSpec("file", "An ONNX network that finds the reference's foreground where no reference mask is given."),
    ] = None
    guidance_scale: Annotated[float, OptionSpec("number", "Guidance by the reference; up to 1 is off.", low=0)] = 4.0
    sketch_guidance_scale: Annotated[float, OptionSpec("number", "Guidance by the sketch; up to 1 is off.", low=0)] = (
        1.0
    )
    reference_strength: Annotated[float, OptionSpec("number", "How strongly the reference acts.", low=0)] = 1.0
    level_strengths: Annotated[
        tuple[float, ...],
        OptionSpec("numbers", "The reference's strength in encoder, middle and low blocks.", length=3, low=0),
    ] = (1.0, 1.0, 1.0)
    block_strengths: Annotated[
        tuple[float, ...] | None,
        OptionSpec("numbers", "Strengths of the 16 attention blocks, in place of the two above.", length=16, low=0),
    ] = None
    block_order: Annotated[
        str,
        OptionSpec(
            "choice",
            "published gives block i slider i + 1, as the published tool does; named gives it its own.",
            choices=("published", "named"),
        ),
    ] = "published"
    foreground_strength: Annotated[float, OptionSpec("number", "Strength of the foreground's colours.", low=0)] = 1.0
    background_strength: Annotated[float, OptionSpec("number", "Strength of the background's colours.", low=0)] = 1.0
    region_strengths: Annotated[
        str,
        OptionSpec(
            "choice",
            "published ignores foreground and background strength in v1 and v1.5, as the published tool does; named "
            "lets them act.",
            choices=("published", "named"),
        ),
    ] = "published"
    background_factor: Annotated[float, OptionSpec("number", "Strength of the background's shapes (v2).", low=0)] = 1.0
    merge_scale: Annotated[
        float, OptionSpec("number", "Share of the background's colours in the foreground, 0 to 1.", low=0, high=1)
    ] = 0.0
    reference_threshold: Annotated[
        float, OptionSpec("number", "From here on a reference mask says foreground.", low=0, high=1)
    ] = 0.5
    sketch_threshold: Annotated[
        float, OptionSpec("number", "From here on a sketch mask says foreground.", low=0, high=1)
    ] = 0.05
    control_scale: Annotated[float, OptionSpec("number", "Strength of the sketch.", low=0)] = 1.0
    guidance_start: Annotated[
        float, OptionSpec("number", "Share of the run before which the reference is off.", low=-1, high=2)
    ] = 0.0
    guidance_end: Annotated[
        float, OptionSpec("number", "Share of the run after which the reference is off.", low=-1, high=2)
    ] = 1.0
    no_guidance_start: Annotated[
        float, OptionSpec("number", "Share of the run from which the reference is off,", low=-1, high=2)
    ] = -0.05
    no_guidance_end: Annotated[
        float, OptionSpec("number", "up to this share; both below 0: never.", low=-1, high=2)
    ] = -0.05
    windows: Annotated[
        str,
        OptionSpec(
            "choice",
            "named lets the limits of guidance act; published latches them (v1) or ignores them (v1.5, v2), as the "
            "published tool does.",
            choices=("named", "published"),
        ),
    ] = "named"
    sampler: Annotated[str | None, OptionSpec("text", "The sampler [diffuser_dpm].")] = None
    scheduler: Annotated[str, OptionSpec("text", "The noise schedule.")] = "Automatic"
    steps: Annotated[int | None, OptionSpec("whole", "Sampling steps [as published].")] = None
    preprocess: Annotated[
        SketchMode,
        OptionSpec(
            "choice",
            "How dark lines on paper become bright ones: invert, none (they are bright already), or invert-webui, "
            "which evens pencil and scans.",
            choices=SKETCH_MODES,
        ),
    ] = "invert"
    padding_scale: Annotated[
        float, OptionSpec("number", "Widen the reference by white margins to this many times its width.", low=1, high=8)
    ] = 1.0
    remove_foreground: Annotated[
        bool, OptionSpec("switch", "Paint the background picture's foreground white; its mask is the reference mask.")
    ] = False
    remove_background: Annotated[
        bool, OptionSpec("switch", "Paint the result white outside its foreground; needs a reference mask network.")
    ] = False
    crop: Annotated[bool, OptionSpec("switch", "Cut the result to where the sketch lies.")] = False
    reference_seed: Annotated[
        int, OptionSpec("whole", "Seed of the noise in the reference's encoding (v2).", low=0)
    ] = 0
    reference_noise: Annotated[
        Any,
        OptionSpec(
            "arrays",
            "The noise of the reference's encoding itself: for every draw an array (1 or batch, 4, height/8, width/8).",
        ),
    ] = None

    @property
    def guidance(self) -> Guidance:
        """Which guidance is on: a scale above 1 turns its kind on."""
        if self.guidance_scale > 1:
            return "both" if self.sketch_guidance_scale > 1 else "reference"
        return "sketch" if self.sketch_guidance_scale > 1 else "none"

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """The scale of each kind that is on, the reference's first."""
        return tuple(float(scale) for scale in (self.guidance_scale, self.sketch_guidance_scale) if scale > 1)
