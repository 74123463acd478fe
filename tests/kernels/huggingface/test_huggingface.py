"""Generation with a fused cache, held to the unmodified model and to a dense cache with restored blocks."""

from __future__ import annotations

import gc
import subprocess
import sys
from functools import lru_cache
from typing import Any

import pytest
import torch
from tiny_generators import FAMILIES, LAYERS, WINDOW, padded, random_prompts, related_prompts, tiny_model
from torch import Tensor

from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.huggingface import FusedCache, fused_generation
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.quantised import Layer, QuantisedLayer, read_layer_blocks
from ratedist.kernels.rotary import Rotary

BLOCK = 4
CHOSEN = (2, 3)
"""The layers that are fused by default."""


@lru_cache(maxsize=2)
def model_of(family: str) -> Any:
    return tiny_model(family)


def generate(model: Any, inputs: dict[str, Tensor], cache: Any = None, **options: Any) -> Any:
    given = {} if cache is None else {"past_key_values": cache}
    return model.generate(
        **inputs,
        **given,
        **{"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0} | options,
        return_dict_in_generate=True,
        output_logits=True,
    )


def assert_same_generation(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    for ours_now, theirs_now in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(ours_now, theirs_now, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_unfused_generation_is_the_models_own(family: str) -> None:
    """Prompts of one length, ragged ones padded on the left, and prefilled in chunks."""
    model = model_of(family)
    default = model.config._attn_implementation
    for lengths, chunk in (((37, 37), None), ((37, 5, 23, 1), None), ((30, 9, 21), 8)):
        inputs = padded(random_prompts(lengths))
        expected = generate(model, inputs, prefill_chunk_size=chunk)
        assert len(expected.sequences[:, -10:].unique()) > 4  # else equality would say little
        cache = FusedCache(model, threshold=None, block_size=BLOCK)
        assert_same_generation(generate(model, inputs, cache, prefill_chunk_size=chunk), expected)
        assert cache.lengths == [length + 9 for length in lengths]
        assert not cache.fused
        assert model.config._attn_implementation == default


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_exact_duplicates_change_no_bit(family: str) -> None:
    """At threshold 1 only byte-equal blocks share, and what is read is what was written."""
    model = model_of(family)
    first, second = random_prompts((33, 33))
    inputs = padded([first, second, first[:20] + second[20:], first])
    separate = FusedCache(model, threshold=None, block_size=BLOCK)
    expected = generate(model, inputs, separate)
    cache = FusedCache(model, threshold=1.0, block_size=BLOCK)
    found = generate(model, inputs, cache)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    report = cache.report()
    assert [layer.layer for layer in report.layers] == list(CHOSEN)
    for layer in report.layers:
        # Request 3 repeats request 0, and request 2 its first 20 tokens: 8 and 5 full blocks.
        assert (layer.candidates, layer.candidates - layer.kept, layer.exact) == (32, 13, 13)
    assert report.resident_bytes < separate.report().resident_bytes
    assert_same_generation(found, generate(model, inputs))


def paged(keys: Tensor, values: Tensor, mask: Tensor) -> PagedLayer:
    """Dense keys and values (requests, heads, tokens, dim) in blocks, padding stripped, one by one."""
    lengths = mask.sum(1)
    blocks: list[tuple[Tensor, Tensor]] = []
    entries = torch.full((len(mask), int(lengths.max() + BLOCK - 1) // BLOCK), -1, dtype=torch.int32)
    for row, length in enumerate(lengths.tolist()):
        own = [x[row, :, x.shape[2] - length :].transpose(0, 1) for x in (keys, values)]
        for block in range(-(-length // BLOCK)):
            pair = []
            for x in own:
                tokens = x[block * BLOCK : (block + 1) * BLOCK]
                pair.append(torch.cat((tokens, tokens.new_zeros(BLOCK - len(tokens), *tokens.shape[1:]))))
            entries[row, block] = len(blocks)
            blocks.append((pair[0], pair[1]))
    k, v = (torch.stack([block[part] for block in blocks]) for part in (0, 1))
    return PagedLayer(k, v, BlockTable(entries, lengths, torch.zeros_like(lengths), BLOCK))


def restored(dense: Tensor, fused: FusedLayer, part: str) -> Tensor:
    """The dense keys or values as the fused layer reads them, padding left alone."""
    result = dense.clone()
    pool, scale = getattr(fused, part), getattr(fused, f"{part}_scale")
    for row, length in enumerate(fused.table.lengths.tolist()):
        for token in range(length):
            block, slot = divmod(token, BLOCK)
            physical = int(fused.table.entries[row, block])
            result[row, :, dense.shape[2] - length + token] = pool[physical, slot] * scale[row, block]
    return result


def generation_on_restored_cache(
    model: Any, inputs: dict[str, Tensor], options: dict[str, Any], steps: int = 10
) -> tuple[Tensor, list[Tensor], list[Fusion]]:
    """Greedy decoding by the unmodified model, once the prompt's dense K and V are as fusion has them."""
    from transformers.cache_utils import Cache, DynamicLayer

    cache = Cache(layer_class_to_replicate=DynamicLayer)  # keeps what lies outside of a window too
    mask = inputs["attention_mask"]
    position = (mask.cumsum(1) - 1).clamp(min=0)
    tokens, logits, fusions = [], [], []
    with torch.no_grad():
        out = model(**inputs, position_ids=position, past_key_values=cache)
        for index in CHOSEN:
            layer = cache.layers[index]
            fusion = fuse(paged(layer.keys, layer.values, mask), **options)
            layer.keys = restored(layer.keys, fusion.layer, "k")
            layer.values = restored(layer.values, fusion.layer, "v")
            fusions.append(fusion)
        for step in range(steps):
            logits.append(out.logits[:, -1])
            tokens.append(logits[-1].argmax(1))
            if step == steps - 1:
                break
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            out = model(
                input_ids=tokens[-1][:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            )
    return torch.stack(tokens, dim=1), logits, fusions


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"threshold": 0.7}),
        ("llama", {"threshold": 0.6, "variant": "tree", "criterion": "both", "scale": "projection"}),
        ("gemma2", {"threshold": 0.7, "scale": "raw"}),
        ("qwen2", {"threshold": 0.7}),
        ("gpt_oss", {"threshold": 0.7}),
    ],
)
def test_fused_generation_is_that_on_the_restored_cache(family: str, options: dict[str, Any]) -> None:
    model = model_of(family)
    inputs = padded(related_prompts((33, 26, 33, 14)))
    tokens, logits, fusions = generation_on_restored_cache(model, inputs, options)
    cache = FusedCache(model, block_size=BLOCK, **options)
    found = generate(model, inputs, cache)
    assert torch.equal(found.sequences[:, -10:], tokens)
    for ours, theirs in zip(found.logits, logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    report = cache.report()
    for layer, fusion in zip(report.layers, fusions, strict=True):
        assert 0 < fusion.kept < fusion.candidates  # else nothing was tried
        assert fusion.absorbed > fusion.exact
        assert (layer.candidates, layer.kept, layer.exact) == (
            fusion.candidates,
            fusion.kept,
            fusion.exact,
        )
    unfused = generate(model, inputs)
    assert not torch.allclose(unfused.logits[-1], found.logits[-1], atol=1e-4)  # fusion is felt


def read_back(layer: Layer, dense: Tensor, part: str) -> Tensor:
    """The dense keys or values as the library reads a layer, padding left alone."""
    result = dense.clone()
    width = layer.table.entries.shape[1]
    for row, length in enumerate(layer.table.lengths.tolist()):
        logical = torch.arange(-(-length // BLOCK)) + row * width
        tokens = read_layer_blocks(layer, part, logical).flatten(0, 1)[:length]
        result[row, :, dense.shape[2] - length :] = tokens.transpose(0, 1)
    return result


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({"threshold": 0.6}, 8),
        ({"threshold": 1.0}, 4),
        ({"threshold": 0.6, "max_absorbed_share": 0.5}, None),
        ({"threshold": 0.1, "centre": "position"}, None),
        ({"threshold": 0.1, "rotary": Rotary.from_base(10000.0, 8), "centre": "layer"}, 8),
    ],
    ids=["8 bits", "4 bits", "cap", "centre", "rotary, centre, 8 bits"],
)
def test_quantised_turned_and_centred_blocks_are_read_as_they_say(
    options: dict[str, Any], bits: int | None
) -> None:
    """Decoding, which appends to such a layer, against a dense cache read back from it once."""
    from transformers.cache_utils import Cache, DynamicLayer

    model = model_of("llama")
    inputs = padded(related_prompts((33, 26, 33, 14), changed=0.3))
    mask = inputs["attention_mask"]
    cache = FusedCache(model, block_size=BLOCK, bits=bits, **options)
    dense = Cache(layer_class_to_replicate=DynamicLayer)
    with torch.no_grad():
        position = (mask.cumsum(1) - 1).clamp(min=0)
        for either in (cache, dense):
            model(**inputs, position_ids=position, past_key_values=either)
        before = cache.resident_bytes()
        cache.fuse()
        for index in CHOSEN:
            layer = dense.layers[index]
            fused = cache.layer(index)
            assert isinstance(fused, QuantisedLayer) == (bits is not None)
            assert not isinstance(fused, PagedLayer)
            assert (fused.reading is not None) == ("centre" in options)
            layer.keys = read_back(fused, layer.keys, "k")
            layer.values = read_back(fused, layer.values, "v")
        assert cache.resident_bytes() == reachable_bytes(cache) < before
        for step in range(2 * BLOCK + 2):
            mask = torch.cat((mask, mask.new_ones(4, 1)), dim=1)
            one = {
                "input_ids": torch.full((4, 1), 17 + step),
                "attention_mask": mask,
                "position_ids": mask.sum(1, keepdim=True) - 1,
            }
            ours, theirs = (model(**one, past_key_values=either).logits for either in (cache, dense))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert cache.resident_bytes() == reachable_bytes(cache)
    for layer_report in cache.report().layers:
        assert layer_report.kept < layer_report.candidates
        layer = cache.layer(layer_report.layer)
        table = layer.table
        named = table.entries[torch.arange(table.entries.shape[1]) < table.used_blocks[:, None]].unique()
        blocks = len(layer.k.codes) + len(layer.k_tail) if isinstance(layer, QuantisedLayer) else len(layer.k)
        assert blocks <= len(named) + 4


def reachable_bytes(start: object) -> int:
    """Storage of every tensor that is reachable from an object: whatever the cache may have forgotten."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    left = [start]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type | type(sys)) or callable(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            continue
        if type(thing).__module__.startswith("transformers"):
            continue  # the model's configuration
        left += gc.get_referents(thing)
    return sum(storages.values())


def test_resident_bytes_are_those_of_all_tensors_held() -> None:
    model = model_of("llama")
    inputs = padded(related_prompts((64, 50, 64, 64), changed=0.05))
    cache = FusedCache(model, threshold=0.6, block_size=BLOCK)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
        before = cache.resident_bytes()
        assert before == reachable_bytes(cache) > 0
        cache.fuse()
    report = cache.report()
    assert report.resident_bytes == cache.resident_bytes() == reachable_bytes(cache) < before
    freed = sum(layer.bytes_before - layer.bytes_after for layer in report.layers)
    assert report.resident_bytes == before - freed
    # What is left of a fused layer: a block for each that was kept and for each that is not full, and tables.
    for layer in report.layers:
        now = cache.layer(layer.layer)
        partial = sum(length % BLOCK > 0 for length in cache.lengths)
        assert len(now.k) == layer.kept + partial
        assert layer.kept < layer.candidates / 1.2
    assert report.compression == report.candidates / report.kept
    blocks = sum(-(-length // BLOCK) for length in cache.lengths)
    assert report.unfused_bytes == LAYERS * blocks * 2 * BLOCK * 2 * 8 * 4
    assert before <= report.peak_bytes <= before + sum(layer.bytes_after for layer in report.layers)


def test_decoding_writes_no_fused_block_and_grows_by_little() -> None:
    model = model_of("llama")
    inputs = padded(related_prompts((32, 27, 32), changed=0.05))
    cache = FusedCache(model, threshold=0.6, block_size=BLOCK)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    cache.fuse()
    before = [cache.layer(index) for index in range(LAYERS)]
    pools = [(layer.k.clone(), layer.v.clone()) for layer in before]
    mask = inputs["attention_mask"]
    place, moves = before[CHOSEN[0]].k, 0
    with torch.no_grad():
        for _ in range(40):
            mask = torch.cat((mask, mask.new_ones(3, 1)), dim=1)
            ids = torch.full((3, 1), 7)
            model(input_ids=ids, attention_mask=mask, past_key_values=cache)
            pool = cache.layer(CHOSEN[0]).k
            moves += pool.data_ptr() != place.data_ptr()
            place = pool
    assert 3 < moves <= 40 / BLOCK + 1  # requests of different lengths begin blocks at different steps
    for index, (k, v) in enumerate(pools):
        layer, old = cache.layer(index), before[index]
        assert layer.table.lengths.tolist() == [72, 67, 72]
        width = old.table.entries.shape[1]
        used = torch.arange(width) < old.table.used_blocks[:, None]
        assert torch.equal(layer.table.entries[:, :width][used], old.table.entries[used])
        # Full blocks keep every byte; of others only what lay beyond the length was written.
        full = torch.arange(width) < old.table.full_blocks[:, None]
        ids = old.table.entries[full].long()
        assert torch.equal(layer.k[ids], k[ids])
        assert torch.equal(layer.v[ids], v[ids])
        named = layer.table.entries[
            torch.arange(layer.table.entries.shape[1]) < layer.table.used_blocks[:, None]
        ]
        assert len(layer.k) <= len(named.unique()) + 3  # room for a block of each request at most
        # No two requests write one block.
        later = layer.table.entries[:, 8:].flatten()
        later = later[later >= 0]
        assert len(later.unique()) == len(later)


def test_a_pool_that_grows_counts_twice_towards_the_peak() -> None:
    model = model_of("llama")
    cache = FusedCache(model, threshold=None, block_size=BLOCK)
    with torch.no_grad():
        model(input_ids=torch.ones(2, 8 * BLOCK, dtype=torch.long), past_key_values=cache)
        old = 2 * cache.layer(LAYERS - 1).k.untyped_storage().nbytes()
        model(input_ids=torch.ones(2, 1, dtype=torch.long), past_key_values=cache)
    report = cache.report()
    # The last layer grew when all others had: its old pool comes on top of what is left.
    assert report.peak_bytes == pytest.approx(report.resident_bytes + old, rel=0.01)


def test_domains_do_not_share() -> None:
    model = model_of("llama")
    prompt = random_prompts((32,))[0]
    inputs = padded([prompt] * 4)
    cache = FusedCache(model, threshold=0.5, domains=[0, 1, 1, 2], block_size=BLOCK)
    generate(model, inputs, cache, max_new_tokens=2)
    for index in CHOSEN:
        entries = cache.layer(index).table.entries
        assert torch.equal(entries[1, :8], entries[2, :8])
        own = [set(entries[row, :8].tolist()) for row in (0, 1, 3)]
        assert len(set.union(*own)) == sum(map(len, own)) == 24


def test_layers_that_are_fused_can_be_chosen() -> None:
    model = model_of("llama")
    inputs = padded([random_prompts((32,))[0]] * 2)
    cache = FusedCache(model, threshold=0.9, layers=[5, 0], block_size=BLOCK)
    generate(model, inputs, cache, max_new_tokens=2)
    assert [layer.layer for layer in cache.report().layers] == [0, 5]
    entries = [cache.layer(index).table.entries[:, :8].tolist() for index in range(LAYERS)]
    shared = [first == second for first, second in entries]
    assert shared == [True, False, False, False, False, True]


def test_several_samples_of_a_prompt_share_it() -> None:
    model = model_of("llama")
    inputs = padded(random_prompts((32, 20)))
    cache = FusedCache(model, threshold=1.0, block_size=BLOCK)
    torch.manual_seed(5)
    ours = generate(model, inputs, cache, do_sample=True, num_return_sequences=3, top_k=20)
    torch.manual_seed(5)
    theirs = generate(model, inputs, do_sample=True, num_return_sequences=3, top_k=20)
    assert_same_generation(ours, theirs)
    assert len(set(map(tuple, ours.sequences.tolist()))) > 2
    for layer in cache.report().layers:
        assert (layer.candidates, layer.kept) == (3 * 13, 13)


def test_a_conversation_goes_on() -> None:
    """A second prompt in a second call, unfused and exact: what the model does with a cache of its own."""
    from transformers import DynamicCache

    model = model_of("qwen2")
    inputs = padded(random_prompts((21, 9)))
    more = torch.tensor(random_prompts((13, 13), seed=3))
    results = []
    for cache in (
        DynamicCache(config=model.config),
        FusedCache(model, threshold=None, block_size=BLOCK),
        FusedCache(model, threshold=1.0, block_size=BLOCK),
    ):
        first = generate(model, inputs, cache)
        ids = torch.cat((first.sequences, more), dim=1)
        mask = torch.cat((inputs["attention_mask"], torch.ones(2, 23, dtype=torch.long)), dim=1)
        results.append(generate(model, {"input_ids": ids, "attention_mask": mask}, cache))
    assert_same_generation(results[1], results[0])
    assert_same_generation(results[2], results[0])


def test_the_cache_of_a_batch_can_be_used_again_after_reset() -> None:
    model = model_of("llama")
    cache = FusedCache(model, threshold=1.0, block_size=BLOCK)
    generate(model, padded(random_prompts((12, 9, 3))), cache)
    cache.reset()
    assert (cache.lengths, cache.fused, cache.resident_bytes()) == ([], False, 0)
    inputs = padded(random_prompts((20, 8), seed=4))
    assert_same_generation(generate(model, inputs, cache), generate(model, inputs))


def test_half_precision_stays_close() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    inputs = padded(related_prompts((33, 20)))
    cache = FusedCache(model, threshold=None, block_size=BLOCK)
    ours, theirs = generate(model, inputs, cache), generate(model, inputs)
    assert cache.layer(0).k.dtype == torch.bfloat16
    spread = theirs.logits[0].std()
    assert (ours.logits[0] - theirs.logits[0]).abs().max() < 0.15 * spread


def test_context_manager_switches_the_model_and_back() -> None:
    model = model_of("llama")
    inputs = padded(random_prompts((20, 13)))
    expected = generate(model, inputs)
    with fused_generation(model, threshold=1.0, block_size=BLOCK) as cache:
        assert model.config._attn_implementation == "ratedist_fused"
        assert_same_generation(generate(model, inputs, cache), expected)
    assert model.config._attn_implementation == "sdpa"
    assert_same_generation(generate(model, inputs), expected)

    def fail() -> None:
        with fused_generation(model, threshold=1.0, block_size=BLOCK) as cache:
            generate(model, inputs, cache, num_beams=2)

    with pytest.raises(ValueError, match="beam search"):
        fail()
    assert model.config._attn_implementation == "sdpa"


def test_a_failed_pass_leaves_the_model_as_it_was() -> None:
    model = model_of("llama")
    inputs = padded(random_prompts((20, 13)))
    with pytest.raises(ValueError, match="beam search"):
        generate(model, inputs, FusedCache(model, threshold=1.0), num_beams=2)
    cache = FusedCache(model, threshold=1.0, domains=[0])
    with pytest.raises(ValueError, match="domains"):
        generate(model, inputs, cache)
    assert model.config._attn_implementation == "sdpa"
    assert torch.isfinite(generate(model, inputs).logits[0]).all()


def test_other_caches_and_models_are_left_alone() -> None:
    """A model that a fused cache was made for goes on with its own attention for every other cache."""
    model = tiny_model("mistral")
    inputs = padded(random_prompts((WINDOW + 9, 8)))
    before = generate(model, inputs)
    generate(model, inputs, FusedCache(model, threshold=0.5))
    after = generate(model, inputs)
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))


def test_importing_loads_no_transformers() -> None:
    script = "import sys, ratedist.kernels.huggingface; print('transformers' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    assert result.stdout.strip() == "False"


def test_a_plan_of_equal_settings_is_one_setting_for_all() -> None:
    model, inputs = model_of("llama"), padded(related_prompts((37, 29, 33)))
    options: dict[str, Any] = {"threshold": 0.6, "criterion": "both", "variant": "tree"}
    one = FusedCache(model, block_size=BLOCK, bits=8, **options)
    plan = FusedCache(model, block_size=BLOCK, plan=dict.fromkeys(CHOSEN, options | {"bits": 8}))
    first, second = (generate(model, inputs, cache) for cache in (one, plan))
    assert torch.equal(first.sequences, second.sequences)
    assert one.report() == plan.report()
    assert plan.report().kept < plan.report().candidates


def test_layers_follow_their_own_settings() -> None:
    """A layer by itself is fused alike, whatever the plan does to the others."""
    model, inputs = model_of("llama"), padded(related_prompts((37, 29, 33)))
    settings: dict[int, dict[str, Any]] = {1: {"threshold": 0.4}, 4: {"threshold": 0.9, "criterion": "mean"}}

    def fused(plan: dict[int, dict[str, Any]]) -> dict[int, Any]:
        cache = FusedCache(model, block_size=BLOCK, plan=plan)
        with torch.inference_mode():
            model(**inputs, past_key_values=cache)
        cache.fuse()
        return {layer.layer: layer for layer in cache.report().layers}

    both = fused(settings)
    assert both == fused({1: settings[1]}) | fused({4: settings[4]})
    assert both[1].kept < both[4].kept
    assert fused({}) == {}
