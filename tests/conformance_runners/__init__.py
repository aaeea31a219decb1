"""Per family, how each module named in the conformance cases is run."""
