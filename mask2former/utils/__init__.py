"""Helpers that know nothing of segmentation: files, devices, registries, processes, tables."""
