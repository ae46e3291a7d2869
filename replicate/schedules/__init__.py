"""Schedules: learning rate over iterations, learning rate over layers, resolution and mask ratio over stages."""

import replicate.compat  # noqa: F401
