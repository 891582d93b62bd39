"""Measurements: tables of results, and timings as ratios."""
