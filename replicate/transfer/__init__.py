"""Transfer to dense tasks: detection with instance segmentation, semantic segmentation, a frozen probe."""
