"""SemPPL: semantic positives via pseudo-labels, in JAX and Haiku."""

__version__ = '0.1.0'
