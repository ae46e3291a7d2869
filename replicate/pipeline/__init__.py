"""From the configuration files to finished runs: stages, launch, seeds, store, search."""
