"""Schedules: learning rates over iterations and over layers, resolutions and mask ratios over stages."""

import replicate.compat  # noqa: F401
