"""What only one paper needs: the tables and figures of its notebook, and the numbers that it prints.

`FUNCTIONS` of a paper's module recompute printed numbers (`papers/<key>/computed.yaml`), `ANSWERS` decide
claims that need no training (`claims.yaml`). `replicate.report.computed` finds both by the paper's key.
"""
