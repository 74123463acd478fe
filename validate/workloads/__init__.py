"""Built-in workloads: seeded requests of an exact number of tokens, from text that is always at hand.

Nothing is aligned to blocks: shared parts begin and end where their text does, as they would in production,
so that only what happens to fall on whole blocks can be shared exactly.

``WORKLOADS`` holds them by name, one file each (or two where two belong together); a name may also be a
mixture with weights, see ``ratedist.validate.workloads.mixture``. One's own prompts come from a JSONL file
through ``ratedist.validate.workloads.prompts.read_prompts``.
"""

from ratedist.validate.workloads.base import Workload
from ratedist.validate.workloads.build import WORKLOADS, build_prompts, workload_named

__all__ = ["WORKLOADS", "Workload", "build_prompts", "workload_named"]
