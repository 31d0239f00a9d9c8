"""Tiny random models of every family that Transformers has, by the row of the table that they prove."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCAB = 97
WINDOW = 8
"""Shorter than most prompts, so that windows matter."""

_BASE: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.25,  # large enough that what a token attends to decides what follows
    tie_word_embeddings=False,  # or a random model predicts its own input
)
_HEADS = dict(head_dim=8)
_OLD = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.25) | dict(
    bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False
)
_SLIDING = dict(sliding_window=WINDOW)
_MIXED = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
_LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
_ROUTED = dict(
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
)
_MLA = dict(
    num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8
)
_INDEXER = dict(index_topk=6, index_n_heads=32, index_head_dim=16)
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[3.0, 5.0, 7.0, 9.0],
    factor=4.0,
    original_max_position_embeddings=48,
)

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (model class, options of its configuration)
    "llama": ("LlamaForCausalLM", _BASE),
    "llama (llama3 rope)": (
        "LlamaForCausalLM",
        _BASE
        | dict(
            rope_parameters=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
                rope_theta=10000.0,
            )
        ),
    ),
    "llama (dynamic rope)": (
        "LlamaForCausalLM",
        _BASE
        | dict(max_position_embeddings=48, rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0)),
    ),
    "mistral": ("MistralForCausalLM", _BASE | _SLIDING),
    "mixtral": ("MixtralForCausalLM", _BASE | _LOCAL | dict(sliding_window=None)),
    "mixtral (window)": ("MixtralForCausalLM", _BASE | _LOCAL | _SLIDING),
    "opt": ("OPTForCausalLM", _BASE | dict(ffn_dim=48, word_embed_proj_dim=32, init_std=0.25)),
    "bloom": ("BloomForCausalLM", _BASE | dict(n_layer=2, n_head=4)),
    "gpt2": ("GPT2LMHeadModel", _OLD),
    "gptj": ("GPTJForCausalLM", _OLD | dict(rotary_dim=4)),
    "qwen2": ("Qwen2ForCausalLM", _BASE),
    "qwen2 (windows)": ("Qwen2ForCausalLM", _BASE | _MIXED | dict(use_sliding_window=True, max_window_layers=1)),
    "qwen2_moe": ("Qwen2MoeForCausalLM", _BASE | _EXPERTS | dict(shared_expert_intermediate_size=24)),
    "qwen3": ("Qwen3ForCausalLM", _BASE | _HEADS),
    "qwen3_moe": ("Qwen3MoeForCausalLM", _BASE | _HEADS | _EXPERTS),
    "gemma": ("GemmaForCausalLM", _BASE | _HEADS),
    "gemma2": ("Gemma2ForCausalLM", _BASE | _HEADS | _MIXED),
    "gemma3_text": ("Gemma3ForCausalLM", _BASE | _HEADS | _MIXED),
    "gemma3n_text": (
        "Gemma3nForCausalLM",
        _BASE
        | _HEADS
        | _MIXED
        | dict(
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            altup_num_inputs=2,
            num_hidden_layers=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
            num_kv_shared_layers=2,
        ),
    ),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        _BASE
        | _HEADS
        | _MIXED
        | dict(
            global_head_dim=16,
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=0,
        ),
    ),
    "gemma4_unified_text": (
        "Gemma4UnifiedForCausalLM",
        _BASE | _HEADS | _MIXED | dict(global_head_dim=16, hidden_size_per_layer_input=0, num_kv_shared_layers=0),
    ),
    "vaultgemma": ("VaultGemmaForCausalLM", _BASE | _HEADS | _MIXED),
    "gpt_neox": ("GPTNeoXForCausalLM", _BASE),
    "gpt_neox_japanese": ("GPTNeoXJapaneseForCausalLM", _BASE),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", _OLD),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        _BASE | dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=WINDOW),
    ),
    "codegen": ("CodeGenForCausalLM", _OLD | dict(rotary_dim=4)),
    "xglm": ("XGLMForCausalLM", _BASE | dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, init_std=0.25)),
    "falcon": ("FalconForCausalLM", _BASE | dict(num_kv_heads=2, new_decoder_architecture=True)),
    "falcon (multi-query)": ("FalconForCausalLM", _BASE | dict(new_decoder_architecture=False, multi_query=True)),
    "falcon (alibi)": ("FalconForCausalLM", _BASE | dict(alibi=True, new_decoder_architecture=False)),
    "mpt": ("MptForCausalLM", _BASE | dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=512, use_cache=True)),
    "phi": ("PhiForCausalLM", _BASE),
    "phi3": ("Phi3ForCausalLM", _BASE | dict(sliding_window=None)),
    "phi3 (window)": ("Phi3ForCausalLM", _BASE | _SLIDING),
    "phimoe": ("PhimoeForCausalLM", _BASE | _LOCAL | dict(sliding_window=None)),
    "phi3 (longrope)": (
        "Phi3ForCausalLM",
        _BASE | dict(sliding_window=None, original_max_position_embeddings=48, rope_parameters=_LONGROPE),
    ),
    "minicpm3 (longrope)": ("MiniCPM3ForCausalLM", _BASE | _MLA | dict(rope_parameters=_LONGROPE)),
    "glm": ("GlmForCausalLM", _BASE | _HEADS),
    "glm4": ("Glm4ForCausalLM", _BASE | _HEADS),
    "glm4_moe": ("Glm4MoeForCausalLM", _BASE | _HEADS | _ROUTED),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", _BASE | _ROUTED | _MLA),
    "glm_moe_dsa": (
        "GlmMoeDsaForCausalLM",
        _BASE | _ROUTED | _MLA | _INDEXER,
    ),
    "deepseek_v2": ("DeepseekV2ForCausalLM", _BASE | _ROUTED | _MLA),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _BASE | _ROUTED | _MLA),
    "deepseek_v32": (
        "DeepseekV32ForCausalLM",
        _BASE | _ROUTED | _MLA | _INDEXER,
    ),
    "cohere": ("CohereForCausalLM", _BASE),
    "cohere2": ("Cohere2ForCausalLM", _BASE | _MIXED),
    "cohere2_moe": ("Cohere2MoeForCausalLM", _BASE | _MIXED | _EXPERTS | _LOCAL),
    "olmo": ("OlmoForCausalLM", _BASE),
    "olmo2": ("Olmo2ForCausalLM", _BASE),
    "olmo3": ("Olmo3ForCausalLM", _BASE | _MIXED),
    "olmoe": ("OlmoeForCausalLM", _BASE | _EXPERTS),
    "flex_olmo": ("FlexOlmoForCausalLM", _BASE | _EXPERTS),
    "granite": ("GraniteForCausalLM", _BASE),
    "granitemoe": ("GraniteMoeForCausalLM", _BASE | _LOCAL),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", _BASE | _LOCAL | dict(shared_intermediate_size=24)),
    "granite_swa": ("GraniteSWAForCausalLM", _BASE | _MIXED),
    "granitemoe_swa": ("GraniteMoeSWAForCausalLM", _BASE | _MIXED | _LOCAL),
    "starcoder2": ("Starcoder2ForCausalLM", _BASE | _SLIDING),
    "smollm3": ("SmolLM3ForCausalLM", _BASE | dict(no_rope_layers=[1, 0])),
    "stablelm": ("StableLmForCausalLM", _BASE),
    "nemotron": ("NemotronForCausalLM", _BASE),
    "persimmon": ("PersimmonForCausalLM", _BASE),
    "helium": ("HeliumForCausalLM", _BASE | _HEADS),
    "minicpm3": ("MiniCPM3ForCausalLM", _BASE | _MLA),
    "ernie4_5": ("Ernie4_5ForCausalLM", _BASE | _HEADS),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        _BASE | dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1),
    ),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", _BASE | _HEADS),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", _BASE | _HEADS | dict(num_experts=4, moe_topk=2)),
    "seed_oss": ("SeedOssForCausalLM", _BASE | _HEADS),
    "arcee": ("ArceeForCausalLM", _BASE),
    "dbrx": (
        "DbrxForCausalLM",
        _BASE
        | dict(
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=512,
            attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0),
            ffn_config=dict(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2),
        ),
    ),
    "jetmoe": (
        "JetMoeForCausalLM",
        _BASE | dict(num_local_experts=4, num_experts_per_tok=2, kv_channels=8, num_attention_heads=4),
    ),
    "minimax_m2": ("MiniMaxM2ForCausalLM", _BASE | _HEADS | _LOCAL),
    "minimax_m3_vl_text": (
        "MiniMaxM3VLForCausalLM",
        _BASE
        | _HEADS
        | _LOCAL
        | dict(layer_types=["full_attention"] * 2, dense_intermediate_size=48, shared_intermediate_size=24),
    ),
    "diffllama": ("DiffLlamaForCausalLM", _BASE),
    "doge": ("DogeForCausalLM", _BASE | dict(keep_window_size=WINDOW)),
    "ctrl": ("CTRLLMHeadModel", _OLD | dict(dff=48, n_positions=512)),
    "biogpt": ("BioGptForCausalLM", _BASE),
    "apertus": ("ApertusForCausalLM", _BASE),
    "aria_text": ("AriaTextForCausalLM", _BASE | dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)),
    "bitnet": ("BitNetForCausalLM", _BASE),
    "hyperclovax": ("HyperCLOVAXForCausalLM", _BASE),
    "jais2": ("Jais2ForCausalLM", _BASE),
    "nanochat": ("NanoChatForCausalLM", _BASE),
    "solar_open": ("SolarOpenForCausalLM", _BASE | _HEADS | _ROUTED),
    "hy_v3": ("HYV3ForCausalLM", _BASE | _HEADS | _EXPERTS | dict(first_k_dense_replace=1)),
    "hy_v4": ("HYV4ForCausalLM", _BASE | _ROUTED | _MLA | _INDEXER | dict(indexer_types=["full", "shared"], hc_mult=2)),
    "ministral": ("MinistralForCausalLM", _BASE | _HEADS | _MIXED),
    "ministral3": ("Ministral3ForCausalLM", _BASE | _HEADS),
    "hrm_text": ("HrmTextForCausalLM", _BASE | _HEADS),
    "youtu": ("YoutuForCausalLM", _BASE | _MLA),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        _BASE
        | _MLA
        | dict(
            head_dim=8,
            ffn_hidden_size=48,
            expert_ffn_hidden_size=24,
            num_layers=1,
            n_routed_experts=4,
            zero_expert_num=1,
            moe_topk=2,
        ),
    ),
    "axk1": ("AXK1ForCausalLM", _BASE | _ROUTED | _MLA),
    "axk2": ("AXK2ForCausalLM", _BASE | _ROUTED | _MLA | _INDEXER),
    "gpt_oss": ("GptOssForCausalLM", _BASE | _HEADS | _MIXED | _LOCAL),
    "exaone4": ("Exaone4ForCausalLM", _BASE | _MIXED),
    "exaone_moe": ("ExaoneMoeForCausalLM", _BASE | _MIXED | _EXPERTS),
    "llama4_text": (
        "Llama4ForCausalLM",
        _BASE
        | _HEADS
        | _LOCAL
        | dict(
            intermediate_size_mlp=48,
            attention_chunk_size=WINDOW,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
            attn_temperature_tuning=True,
            floor_scale=4,
        ),
    ),
    "modernbert-decoder": (
        "ModernBertDecoderForCausalLM",
        _BASE | dict(local_attention=2 * WINDOW, layer_types=["sliding_attention", "full_attention"]),
    ),
    "afmoe": ("AfmoeForCausalLM", _BASE | _HEADS | _MIXED | _EXPERTS | dict(num_dense_layers=1)),
    "cwm": ("CwmForCausalLM", _BASE | _HEADS | _MIXED),
    "flint": ("FlintForCausalLM", _BASE | _HEADS | _MIXED),
    "kolibri1": ("Kolibri1ForCausalLM", _BASE | _HEADS | _MIXED | _EXPERTS | dict(shared_expert_intermediate_size=24)),
    "laguna": ("LagunaForCausalLM", _BASE | _HEADS | _MIXED | _EXPERTS),
    "mellum": ("MellumForCausalLM", _BASE | _HEADS | _MIXED | _EXPERTS),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", _BASE | _HEADS | _MIXED | _ROUTED),
    "beam": ("BeamForCausalLM", _BASE | _HEADS | _MIXED),
    "dots1": ("Dots1ForCausalLM", _BASE | _HEADS | _MIXED | _ROUTED),
    "cohere_compass_text": (
        "CohereCompassForCausalLM",
        _BASE
        | _HEADS
        | _MIXED
        | dict(
            rope_parameters={
                kind: dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
                for kind in ("sliding_attention", "full_attention")
            }
        ),
    ),
    "dots3_note_text": (
        "Dots3NoteForCausalLM",
        _BASE
        | _ROUTED
        | _MLA
        | _INDEXER
        | dict(sliding_window=WINDOW, layer_types=["sliding_attention", "indexed_attention"])
        | dict(shared_experts_intermediate_size=24, swa_num_attention_heads=4, swa_num_key_value_heads=4)
        | dict(swa_q_lora_rank=16, swa_kv_lora_rank=16, swa_head_dim=16, swa_qk_nope_head_dim=8, swa_v_head_dim=8),
    ),
}


def build(name: str, **changes: Any) -> torch.nn.Module:
    """A tiny model with fixed random weights, float32, in evaluation mode."""
    class_name, options = ZOO[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**(options | changes))).eval()
    model.generation_config.pad_token_id = 0
    return model


def is_known(name: str) -> bool:
    """Whether the installed Transformers has this model, with these options."""
    model_class = getattr(transformers, ZOO[name][0], None)
    return model_class is not None
