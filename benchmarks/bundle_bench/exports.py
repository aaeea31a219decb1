"""A declared bundle, exported once by the command ``export-engines`` and measured while it was."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_full_size import measure_export

from bundle_bench.declarations import Declaration
from saishiki.runtime.bundle import Bundle


@dataclass
class Exports:
    """Owns a folder of bundles; each is exported when it is first asked for.

    Args:
        targets: as of ``export-engines``, such as ``onnx`` or ``rtx``.
    """

    folder: Path
    targets: str
    done: dict[str, tuple[Bundle, dict[str, Any]]] = field(default_factory=dict)

    def measured(self, declaration: Declaration) -> dict[str, Any]:
        """Seconds, peak resident memory and errors of the export; raises ``RuntimeError`` where its parity is red."""
        return self._exported(declaration)[1]

    def bundle(self, declaration: Declaration) -> Bundle:
        """The bundle; raises ``ValueError`` where it has other modules than declared."""
        return self._exported(declaration)[0]

    def _exported(self, declaration: Declaration) -> tuple[Bundle, dict[str, Any]]:
        if declaration.name not in self.done:
            folder = self.folder / declaration.name.replace(" ", "-")
            folder.mkdir(parents=True)
            figures = measure_export(
                declaration.checkpoint(folder),
                folder / "bundle.saishiki",
                folder / "cache",
                options=(
                    "--size",
                    str(declaration.size_px),
                    "--batch",
                    f"1:{declaration.batch}",
                    "--targets",
                    self.targets,
                    *declaration.options,
                ),
            )
            self.done[declaration.name] = _opened(declaration, folder / "bundle.saishiki"), figures
        return self.done[declaration.name]


def _opened(declaration: Declaration, path: Path) -> Bundle:
    bundle = Bundle.open(path)
    if set(bundle.manifest.modules) != set(declaration.modules):
        raise ValueError(
            f"the declaration of {declaration.name} has the modules {', '.join(sorted(declaration.modules))}, "
            f"its bundle {', '.join(sorted(bundle.manifest.modules))}; correct it in bundle_bench/declarations.py"
        )
    return bundle
