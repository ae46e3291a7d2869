"""The training loop, and on top of it pre-training and the evaluations of what it learnt."""

import replicate.compat  # noqa: F401
