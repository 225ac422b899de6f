"""Nestling: transformers that can be cut to a budget. This repository is the package."""

__version__ = "0.1.0"
