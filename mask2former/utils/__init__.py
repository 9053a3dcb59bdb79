"""Utilities that do not depend on segmentation: files, devices, registries, processes and tables."""
