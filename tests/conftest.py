"""Set-up that must happen before anything imports triton or ratedist."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Read when triton is first imported, which importing a transformers model does.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The folders ./ratedist and ./kernels would shadow what is installed.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != _ROOT]

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "ratedist",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ratedist")
