"""Predictors: from a calibration sample of block similarities to kept blocks and errors at any threshold."""
