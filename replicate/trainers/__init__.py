"""One engine, and on top of it pre-training and the evaluations of what was pre-trained."""

import replicate.compat  # noqa: F401
