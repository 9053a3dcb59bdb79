"""Helpers of the reference implementation that video projects import."""
