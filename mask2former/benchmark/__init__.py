"""Measurement of speed: times with their spread, memory, kernels, physical floors, and reports of them.

`mask2former benchmark` and tools/benchmark.py are the commands; docs/benchmarks.md is made of their reports.
"""
