"""Replication workbook for five papers on efficient masked image modelling.

Importing this package is cheap: nothing here pulls in torch. Each idea of the papers lives in one module under the field's own name.
"""

__version__ = "0.1.0"
