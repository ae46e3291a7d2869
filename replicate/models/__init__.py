"""The models: masked autoencoder, masked image modelling with any backbone, classifiers.

`replicate.models.build` builds every one of them from a run.
"""

import replicate.compat  # noqa: F401
