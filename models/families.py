"""All model families, and telling which one a checkpoint belongs to: from its tensors, never from its file name."""

from saishiki.models.animediffusion import ANIMEDIFFUSION
from saishiki.models.checkpoints import Checkpoint, CheckpointError, first_five
from saishiki.models.colorizediffusion.family import COLORIZEDIFFUSION
from saishiki.models.family import Family

FAMILIES: tuple[Family, ...] = (ANIMEDIFFUSION, *COLORIZEDIFFUSION)


def recognize(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint; raises ``CheckpointError`` where none, or more than one, matches."""
    found = [family for family in FAMILIES if family.matches(checkpoint.shapes)]
    if len(found) != 1:
        fits = " and ".join(family.name for family in found) or "no family"
        known = ", ".join(family.name for family in FAMILIES)
        raise CheckpointError(
            f"{checkpoint.path}: its tensors are those of {fits}, expected one of {known}; they are "
            f"{first_five(checkpoint.shapes)}: give a whole checkpoint of such a network"
        )
    return found[0]
