"""Measured speed: foretoken beside other libraries, in one run. See `python -m benchmarks --help`."""
