"""``export-engines``, and ``python -m saishiki.export``: the command line, where everything it needs is installed."""

import sys


def main() -> None:
    """Runs the command line; says which extra to install where a package is missing."""
    try:
        from saishiki.export.cli import main as export_engines
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("saishiki"):
            raise
        sys.exit(f"Error: export-engines needs {error.name}; install it with: pip install 'saishiki[export]'")
    export_engines(prog_name="export-engines")


if __name__ == "__main__":
    main()
