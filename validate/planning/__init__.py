"""From a calibration to a decision: which setting every layer takes, and what that is expected to give."""
