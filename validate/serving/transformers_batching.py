"""transformers' own continuous batching on a trace: the unfused reference for this engine.

It shares exact prefixes and holds its cache in blocks, as the engine does, but carries no fused cache: its
attention reads plain keys and values. So it stands beside the engine without fusion.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ratedist.errors import InputError, RatedistError
from ratedist.validate.models import LoadedModel
from ratedist.validate.serving.engine import EngineOptions
from ratedist.validate.serving.trace import Request, check_trace

__all__ = ["TransformersRun", "run_transformers"]

_LONGEST_WAIT = 600.0
"""Seconds without a finished request after which a run is given up."""


@dataclass(frozen=True)
class TransformersRun:
    """A trace served by transformers.

    Attributes:
        tokens: generated tokens per request.
        token_times: seconds, from the trace's start, when each of them was there.
        seconds: when the last one was.
        blocks: pages of the pool, over all layers.
    """

    tokens: tuple[tuple[int, ...], ...]
    token_times: tuple[tuple[float, ...], ...]
    seconds: float
    blocks: int

    @property
    def generated(self) -> int:
        """Tokens that were generated."""
        return sum(map(len, self.tokens))


def run_transformers(
    loaded: LoadedModel, trace: Sequence[Request], options: EngineOptions
) -> TransformersRun:
    """Serve a trace with greedy decoding; the clock is the wall clock, waiting for arrivals included.

    Args:
        loaded: the model; its attention implementation is as before afterwards.
        trace: by arrival.
        options: pool, block size, batch, tokens per pass and whether prefixes are shared; what concerns
            fusion is not used. transformers gives every layer as many blocks as the others.

    Raises:
        InputError: a trace that ``check_trace`` refuses, several domains (transformers knows none), a version
            of transformers without continuous batching, or a pool below one block per layer.
        RatedistError: transformers failed on a request, or finished none for ten minutes.
    """
    check_trace(trace, loaded.max_tokens)
    if len({request.domain for request in trace}) > 1:
        raise InputError("trace", "several domains", "transformers shares prefixes across all requests")
    try:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig
    except ImportError as error:
        raise InputError(
            "transformers", str(error), "this version has no continuous batching to compare with; update it"
        ) from error
    layers = loaded.layers
    if options.pool_blocks < layers:
        raise InputError(
            "pool_blocks", options.pool_blocks, f"must be at least one in each of {layers} layers"
        )
    greedy = GenerationConfig(
        max_new_tokens=max(request.new_tokens for request in trace),
        do_sample=False,
        eos_token_id=-1,  # requests end by length, as the engine's do
        pad_token_id=0,
    )
    batching = ContinuousBatchingConfig(
        page_size=options.block_size,
        num_blocks=options.pool_blocks // layers,
        max_batch_tokens=options.step_tokens,
        max_requests_per_batch=options.max_batch,
        allow_block_sharing=options.share_prefixes,
        use_async_batching=False,
        use_cuda_graph=False,
    )
    finished: dict[int, Any] = {}
    with loaded.model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=batching, warmup=False
    ) as manager:
        start = time.perf_counter()
        for number, request in enumerate(trace):
            time.sleep(max(0.0, start + request.arrival - time.perf_counter()))
            manager.add_request(
                list(request.prompt), str(number), request.new_tokens, record_timestamps=True, eos_token_id=-1
            )
        while len(finished) < len(trace):
            output = manager.get_result(timeout=_LONGEST_WAIT)
            if output is None:
                raise RatedistError(
                    f"transformers finished {len(finished)} of {len(trace)} requests and no other in "
                    f"{_LONGEST_WAIT:.0f} s; give a larger pool, or compare without it"
                )
            if output.error is not None:
                raise RatedistError(f"transformers failed on request {output.request_id}: {output.error}")
            if output.is_finished():
                finished[int(output.request_id)] = output
    times = [tuple(time - start for time in finished[number].timestamps) for number in range(len(trace))]
    return TransformersRun(
        tokens=tuple(tuple(finished[number].generated_tokens) for number in range(len(trace))),
        token_times=tuple(times),
        seconds=max(one[-1] for one in times),
        blocks=options.pool_blocks // layers * layers,
    )
