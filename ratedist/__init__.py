"""Rate-distortion theory, simulation and GPU kernels for fusing similar KV-cache blocks.

Importing this package loads neither torch nor matplotlib; the subpackages ``kernels``, ``sim``,
``validate`` and ``figures`` do when they are used.
"""

from __future__ import annotations

from ratedist.errors import CaptureError, InputError, RatedistError

__all__ = ["CaptureError", "InputError", "RatedistError", "__version__"]

__version__ = "0.1.0"
