"""What the explore notebooks draw. A module is one notebook: `controls()` names its widgets, `draw(...)`
takes their values.

Where the pipeline's pages show the same thing, both call the same drawing function of `replicate.report`.
"""
