"""The parts of ``gpu_battery.py``, and what runs them one after the other."""
