"""Metrics of nested models. Files named `*_metric.py` also load by path with `evaluate.load`.

Each of them imports only its one neighbour and installed libraries, because `evaluate` copies the
script and its direct relative imports into a folder of its own.
"""
