"""``python -m saishiki.export`` is ``export-engines``."""

from saishiki.export.cli import main

main(prog_name="export-engines")
