"""What a fused cache refuses, and what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny_generators import LAYERS, config_of, padded, random_prompts, tiny_model

from ratedist.errors import InputError, RatedistError
from ratedist.kernels.huggingface import ATTENTION, FusedCache, fused_generation

PROMPTS = padded(random_prompts((9, 6)))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def generate(model: Any, cache: FusedCache, **options: Any) -> Any:
    inputs = {**PROMPTS, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(**inputs, past_key_values=cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.5}, "threshold = 1.5: must lie within"),
        ({"threshold": "high"}, "threshold = 'high': must be a number"),
        ({"variant": "forest"}, "variant = 'forest': must be one of"),
        ({"criterion": "taste"}, "criterion = 'taste': must be one of"),
        ({"scale": "none"}, "scale = 'none': must be one of"),
        ({"backend": "gpu"}, "backend = 'gpu': must be one of"),
        ({"threshhold": 0.5}, r"threshhold = 0.5: is no option of fusion; there are .*threshold"),
        ({"layer_name": "x"}, "layer_name = 'x': is no option of fusion"),
        ({"block_size": 0}, "block_size = 0: must be an integer of at least 1"),
        ({"block_size": True}, "block_size = True: must be an integer"),
        ({"attention_backend": "flash"}, "attention_backend = 'flash': must be one of"),
        ({"layers": [1, LAYERS]}, f"must be indices of the model's {LAYERS} layers"),
        ({"layers": [-1]}, "must be indices of the model's"),
        ({"layers": [True]}, "must be indices of the model's"),
        ({"layers": [2, 2]}, "names a layer twice"),
        ({"bits": 2}, "bits = 2: must be one of 8, 4, or None"),
        ({"threshold": None, "bits": 8}, "threshold = None: fuses nothing"),
        ({"domains": [0.5, 1]}, "domains = .*must be integers"),
        ({"threshold": None, "layers": [2]}, "threshold = None: fuses nothing"),
        ({"threshold": None, "variant": "tree"}, "threshold = None: fuses nothing"),
    ],
)
def test_arguments(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FusedCache(model, **{"threshold": 0.9} | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "threshold = 'missing': give one, None to fuse nothing, or a plan"),
        ({"plan": [0.9]}, r"plan = 'list': must map layer indices to settings, as in \{4: "),
        ({"plan": {2: 0.9}}, "plan = 'dict': must map layer indices to settings"),
        ({"plan": {LAYERS: {"threshold": 0.9}}}, f"must be indices of the model's {LAYERS} layers"),
        ({"plan": {2: {"criterion": "both"}}}, "plan, layer 2: threshold = None: give one; 1 shares exact"),
        ({"plan": {2: {"threshold": 7}}}, "plan, layer 2: threshold = 7.0: must lie within"),
        ({"plan": {2: {"threshold": 0.9, "bits": 3}}}, "plan, layer 2: bits = 3: must be one of 8, 4, or"),
        ({"plan": {2: {"threshold": 0.9, "scales": 1}}}, "plan, layer 2: scales = 1: is no option of fusion"),
        ({"plan": {}, "threshold": 0.9}, "threshold = 0.9: is the plan's to say; leave it out, or the plan"),
        ({"plan": {}, "layers": [2]}, r"layers = \[2\]: is the plan's to say"),
        ({"plan": {}, "variant": "tree"}, "variant = 'tree': is the plan's to say"),
    ],
)
def test_plans(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FusedCache(model, **arguments)


def test_default_layers_need_a_middle() -> None:
    shallow = config_of("LlamaConfig", num_hidden_layers=4)
    with pytest.raises(InputError, match="all of the model's 4 layers are among the first or last 2; name"):
        FusedCache(shallow, threshold=0.9)
    FusedCache(shallow, threshold=0.9, layers=[0])
    FusedCache(shallow, threshold=None)


def test_not_a_model() -> None:
    with pytest.raises(InputError, match="model_or_config = 'str': must be a Hugging Face"):
        FusedCache("llama", threshold=0.9)
    with (
        pytest.raises(InputError, match="model = 'LlamaConfig': must be a Hugging Face model with"),
        fused_generation(config_of("LlamaConfig"), threshold=0.9),
    ):
        pass


def refused_configurations() -> list[tuple[str, dict[str, Any], str]]:
    per_head = "does not keep one K and one V per KV head and layer of its own"
    return [
        ("DeepseekV3Config", {"num_key_value_heads": 4}, f"{per_head}.*one latent"),
        ("MambaConfig", {}, per_head),
        ("Qwen3NextConfig", {}, f"{per_head}.*layers of type linear_attention"),
        ("Gemma3nTextConfig", {"num_kv_shared_layers": 2}, f"{per_head}.*read the K and V of others"),
        ("T5Config", {}, "is an encoder-decoder; a decoder-only model is needed"),
        ("Llama4TextConfig", {}, f"{per_head}.*layers of type chunked_attention"),
    ]


@pytest.mark.parametrize(("name", "changes", "message"), refused_configurations())
def test_models_without_keys_and_values_per_head(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        FusedCache(config_of(name, **changes), threshold=0.9)


def test_a_model_with_attention_of_its_own() -> None:
    import transformers

    own = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=8, n_layer=5, n_head=2))
    with pytest.raises(InputError, match="does not look up its attention in"):
        FusedCache(own, threshold=0.9)


def test_keys_and_values_of_different_shapes(model: Any) -> None:
    cache = FusedCache(model, threshold=0.9)
    with fused_generation(model, threshold=0.9):
        key = torch.zeros(1, 2, 3, 8)
        with pytest.raises(InputError, match="K and V must be of one shape per head"):
            cache.update(key, torch.zeros(1, 2, 3, 4), 0)
        with pytest.raises(InputError, match=f"layer_idx = {LAYERS}: the model has {LAYERS} layers"):
            cache.update(key, key, LAYERS)
        with pytest.raises(InputError, match=r"key_states = 'torch.float64': must be float32"):
            cache.update(key.double(), key.double(), 0)


def test_beams_crops_and_assistants(model: Any) -> None:
    with pytest.raises(InputError, match="beam search would reorder fused requests; use greedy search"):
        generate(model, FusedCache(model, threshold=0.9), num_beams=2)
    with pytest.raises(InputError, match=r"assisted decoding.*takes tokens back"):
        generate(
            model,
            FusedCache(model, threshold=0.9),
            prompt_lookup_num_tokens=2,
            **padded(random_prompts((9,))),
        )
    cache = FusedCache(model, threshold=0.9)
    with pytest.raises(InputError, match="tokens_to_remove = -2: a fused cache cannot be cropped"):
        cache.crop(-2)
    with pytest.raises(InputError, match="cannot multiply its requests"):
        cache.batch_repeat_interleave(2)
    with pytest.raises(InputError, match="keeps the requests it began with"):
        cache.batch_select_indices(torch.tensor([0]))
    with pytest.raises(InputError, match="cannot be exported or compiled"):
        cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_attention_implementation(implementation: str) -> None:
    """The model that the cache knows is switched; one that it does not know is refused, not run wrongly."""
    other = tiny_model("llama")
    other.set_attn_implementation(implementation)
    cache = FusedCache(other.config, threshold=0.9)
    with pytest.raises(
        InputError, match=f"attn_implementation = '{implementation}': would not read the fused cache"
    ):
        generate(other, cache)
    other.set_attn_implementation(ATTENTION)
    generate(other, cache)
    assert cache.fused
    # By its weights alone, past the module that the hooks are on.
    other.set_attn_implementation(implementation)
    followed = FusedCache(other, threshold=0.9)
    with pytest.raises(InputError, match="would not read the fused cache"):
        other.model(**PROMPTS, past_key_values=followed)


def test_the_cache_of_another_model(model: Any) -> None:
    """Its configuration says all is well, yet nobody reads the cache."""
    other = tiny_model("llama", seed=3)
    with fused_generation(model, threshold=0.9) as cache:
        with pytest.raises(InputError, match=r"layer 0.*did not read the fused cache that it was given"):
            generate(other, cache)
        cache.reset()
        generate(model, cache)


def test_a_cache_that_was_forgotten(model: Any) -> None:
    with (
        pytest.raises(InputError, match=r"past_key_values = 'no FusedCache'.*pass one as past_key_values"),
        fused_generation(model, threshold=0.9),
    ):
        model.generate(**PROMPTS, max_new_tokens=2, pad_token_id=0)
    model.generate(**PROMPTS, max_new_tokens=2, pad_token_id=0)


def test_another_batch(model: Any) -> None:
    cache = FusedCache(model, threshold=0.9)
    generate(model, cache)
    ids = torch.ones(3, 1, dtype=torch.long)
    with pytest.raises(InputError, match="batch size = 3: the cache holds 2 requests"):
        model(input_ids=ids, attention_mask=torch.ones(3, 12), past_key_values=cache)


def test_domains_of_another_length(model: Any) -> None:
    with pytest.raises(InputError, match=r"domains = \[0, 1, 2\]: must hold one per request: there are 2"):
        generate(model, FusedCache(model, threshold=0.9, domains=[0, 1, 2]))
    cache = FusedCache(model, threshold=0.9, domains=[0, 1])
    with pytest.raises(InputError, match="there are 4"):
        generate(model, cache, num_return_sequences=2, do_sample=True)


def test_masks(model: Any) -> None:
    ids = PROMPTS["input_ids"]

    def run(mask: torch.Tensor | None, cache: FusedCache | None = None, tokens: torch.Tensor = ids) -> None:
        with torch.no_grad():
            model(
                input_ids=tokens,
                attention_mask=mask,
                past_key_values=cache or FusedCache(model, threshold=0.9),
            )

    right = torch.ones_like(ids)
    right[1, -2:] = 0
    with pytest.raises(InputError, match=r"request 1 has padding behind tokens.*pad on the left"):
        run(right)
    hole = torch.ones_like(ids)
    hole[0, 4] = 0
    with pytest.raises(InputError, match="request 0 has padding behind tokens"):
        run(hole)
    square = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    with pytest.raises(InputError, match=r"\(2, 1, 9, 9\): must be two-dimensional, \(2, 9\)"):
        run(square)

    mask = PROMPTS["attention_mask"]
    cache = FusedCache(model, threshold=0.9)
    run(mask, cache)
    one = torch.ones(2, 1, dtype=torch.long)
    with pytest.raises(InputError, match=r"attention_mask = \(2, 1\): must be two-dimensional, \(2, 10\)"):
        run(one, cache, one)
    cache = FusedCache(model, threshold=0.9)
    run(mask, cache)
    with pytest.raises(InputError, match="attention_mask = None: the prompts were padded"):
        run(None, cache, one)
    cache = FusedCache(model, threshold=0.9)
    run(mask, cache)
    with pytest.raises(InputError, match=r"request 1.*must mask the tokens of earlier passes as they"):
        run(torch.ones(2, 10), cache, one)


def test_masks_beyond_causality(model: Any) -> None:
    """Blocks of tokens that see each other, as image tokens do."""
    from transformers.masking_utils import create_causal_mask

    cache = FusedCache(model, threshold=0.9)
    with (
        fused_generation(model, threshold=0.9),
        pytest.raises(InputError, match="more than causality, a window and padding"),
    ):
        create_causal_mask(
            config=model.config,
            inputs_embeds=torch.zeros(2, 9, 32),
            attention_mask=None,
            past_key_values=cache,
            block_sequence_ids=torch.zeros(2, 9, dtype=torch.long),
        )


def test_attention_that_is_not_causal_inference() -> None:
    training = tiny_model("llama")
    training.config.attention_dropout = 0.5
    for layer in training.model.layers:
        layer.self_attn.attention_dropout = 0.5
    training.train()
    with pytest.raises(InputError, match=r"dropout = 0.5: a fused cache is for inference; call model.eval"):
        training(**PROMPTS, past_key_values=FusedCache(training, threshold=0.9))
    training.eval()
    for layer in training.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(InputError, match="is_causal = False: a fused cache serves causal attention only"):
        training(**PROMPTS, past_key_values=FusedCache(training, threshold=0.9))
    for layer in training.model.layers:
        layer.self_attn.is_causal = True
    with pytest.raises(InputError, match="cu_seq_lens_q = 'Tensor': is not supported"):
        training(
            **PROMPTS,
            past_key_values=FusedCache(training, threshold=0.9),
            cu_seq_lens_q=torch.tensor([0, 9]),
        )


def test_a_pass_that_stopped_midway() -> None:
    broken = tiny_model("llama")
    cache = FusedCache(broken, threshold=0.9)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    handle = broken.model.layers[3].self_attn.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        generate(broken, cache)
    handle.remove()
    broken(**PROMPTS)  # the next pass, with a cache of its own, has the model's own attention again
    assert broken.config._attn_implementation == "sdpa"
    with pytest.raises(RatedistError, match=r"stopped before its last layer.*reset\(\) the cache"):
        generate(broken, cache)
    cache.reset()
    generate(broken, cache)
    generate(broken, FusedCache(broken, threshold=0.9))
    assert broken.config._attn_implementation == "sdpa"


def test_another_dtype(model: Any) -> None:
    cache = FusedCache(model, threshold=0.9)
    generate(model, cache)
    half = tiny_model("llama").to(torch.bfloat16)
    half.set_attn_implementation(ATTENTION)
    model.set_attn_implementation(ATTENTION)
    mask = torch.cat((PROMPTS["attention_mask"], torch.ones(2, 3, dtype=torch.long)), dim=1)
    ids = torch.ones(2, 1, dtype=torch.long)
    try:
        with pytest.raises(InputError, match=r"dtype = 'torch.bfloat16': the cache holds torch.float32"):
            half.model(input_ids=ids, attention_mask=mask, past_key_values=cache)
    finally:
        model.set_attn_implementation("sdpa")


def test_compiled_and_static(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cache_implementation"):
        generate(model, FusedCache(model, threshold=0.9), cache_implementation="static")
    # As torch.compile says while it traces; to trace in truth takes longer than all other tests here.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    key = torch.zeros(1, 2, 3, 8)
    with pytest.raises(InputError, match=r"model = 'compiled'.*call the model without torch.compile"):
        FusedCache(model, threshold=0.9).update(key, key, 0)


def test_fusing_by_hand(model: Any) -> None:
    with pytest.raises(InputError, match="threshold = None: fuses nothing; make the cache with a threshold"):
        FusedCache(model, threshold=None).fuse()
    cache = FusedCache(model, threshold=0.9)
    with pytest.raises(InputError, match="cache = 'empty': run the prompts"):
        cache.fuse()
    with pytest.raises(InputError, match="index = 0: the cache is empty"):
        cache.layer(0)
    generate(model, cache)
    with pytest.raises(InputError, match=r"cache = 'fused': is fused once per batch; reset\(\) it"):
        cache.fuse()
    with pytest.raises(InputError, match=f"index = {LAYERS}: must be one of the {LAYERS} layers"):
        cache.layer(LAYERS)
