"""What the project promises of its speed, measured: each number a ratio within one run, or a time, medians of several.

`make bench` runs all of it on the simulated site and writes a dated file under `benchmarks/results/`.
"""
