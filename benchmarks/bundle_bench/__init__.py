"""What ``test_bundles.py`` measures and how its figures get into pytest-benchmark."""
