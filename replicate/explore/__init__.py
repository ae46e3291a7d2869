"""What the explore notebooks draw. Each module is one notebook: `controls()` gives its widgets by name, `draw(...)` takes their values.

The drawing functions are the pipeline's own (`replicate.report`) wherever both show the same thing. Nothing in the pipeline imports this.
"""
