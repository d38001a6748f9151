"""Measurements: ratios within one run, since machines are shared and noisy. They are no tests and never fail."""
