"""Benchmarks: ratios measured in one run, beside what the formulas predict. Never tests."""
