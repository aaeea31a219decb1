"""Maps the four folders at the top of the repository into one namespace package, ``saishiki``."""

from setuptools import find_packages, setup

ROOTS = ("export", "kernels", "models", "runtime")

setup(
    packages=[f"saishiki.{root}" for root in ROOTS]
    + [f"saishiki.{root}.{package}" for root in ROOTS for package in find_packages(root)],
    package_dir={f"saishiki.{root}": root for root in ROOTS},
)
