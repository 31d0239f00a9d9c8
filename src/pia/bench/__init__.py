"""Measurements: replay of recorded outputs, latency, plots."""
