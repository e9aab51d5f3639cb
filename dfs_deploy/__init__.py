"""Skipped work becomes skipped time: deploys networks that choose, per input and per block, what to compute."""

__version__ = "0.1.0"
