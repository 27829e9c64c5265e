"""Kernel of the suite: configuration, stages, results and what several packages share."""

__version__ = "0.1.0"
