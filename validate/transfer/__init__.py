"""What is calibrated on one model or workload, applied to another: laws of similarity, and thresholds."""
