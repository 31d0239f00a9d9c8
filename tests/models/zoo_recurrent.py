"""Tiny models with a recurrent state, as data: what each is, and what PIA is to make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from toys import VOCAB

_IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.25,  # large enough that what a token attends to decides what follows
    tie_word_embeddings=False,
    **_IDS,
)
_MAMBA2 = dict(
    mamba_n_heads=4,
    mamba_d_head=16,
    mamba_n_groups=1,
    mamba_d_state=8,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_chunk_size=8,
)
_DELTA = dict(
    head_dim=8,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
_LATENT = dict(
    num_key_value_heads=4,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_group=1,
    topk_group=1,
    **_EXPERTS,
)
_CONVOLUTIONS = dict(layer_types=["conv", "full_attention", "conv"])
_INKLING = dict(
    layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding"],
    sliding_window_size=8,
    head_dim=8,
    swa_num_attention_heads=4,
    swa_num_key_value_heads=2,
    swa_head_dim=8,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
)

FORGETS = "forget their recurrent state"
CHAIN = "each step verifies one chain"


@dataclass(frozen=True)
class Row:
    """One family: how to build a tiny model of it, and the capability it is to show."""

    name: str
    model: str
    """Class in Transformers; an older release may lack it."""
    config: str
    options: Mapping[str, Any]
    mode: str = "chain"
    """"chain" or "plain"."""
    reason: str = CHAIN
    """Part of the reason that the statistics give."""
    note: str = ""
    shortest: int = 1
    """Tokens of the shortest prompt that the family can take."""
    error: float | None = 1e-6
    """Relative error of float64 logits that its own float32 parts explain; `None` where it cannot run in float64."""

    @property
    def is_known(self) -> bool:
        """Whether the Transformers at hand has this family."""
        return hasattr(transformers, self.model)

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model with fixed random weights, in evaluation mode."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.model)(config).eval()
        if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # grouped matrix products know no float64
        model.generation_config.pad_token_id = 0
        return model.to(dtype)


def _small(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**_SMALL, **changes}.items() if value is not None}


ROWS = [
    Row(
        "mamba2",
        "Mamba2ForCausalLM",
        "Mamba2Config",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=8,
            num_heads=4,
            head_dim=16,
            n_groups=1,
            chunk_size=8,
            initializer_range=0.25,
            tie_word_embeddings=False,
            **_IDS,
        ),
    ),
    Row("bamba", "BambaForCausalLM", "BambaConfig", _small(attn_layer_indices=[1], **_MAMBA2), error=1e-5),
    Row("falcon_h1", "FalconH1ForCausalLM", "FalconH1Config", _small(head_dim=8, mamba_d_ssm=64, **_MAMBA2)),
    Row(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        _small(
            layer_types=["mamba", "attention", "mamba"],
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=16,
            **_MAMBA2,
        ),
        error=1e-5,
    ),
    Row(
        "zamba2",
        "Zamba2ForCausalLM",
        "Zamba2Config",
        _small(
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            n_mamba_heads=4,
            mamba_headdim=16,
            mamba_d_state=8,
            mamba_ngroups=1,
            chunk_size=8,
            use_mem_rope=True,
            num_mem_blocks=2,
        ),
        note="its scan clamps time steps and its single step does not; the twin that verifies clamps nothing",
    ),
    Row(
        "nemotron_h",
        "NemotronHForCausalLM",
        "NemotronHConfig",
        _small(
            num_hidden_layers=None,
            layers_block_type=["mamba", "attention", "mamba", "moe"],
            head_dim=8,
            mamba_num_heads=4,
            mamba_head_dim=16,
            n_groups=1,
            ssm_state_size=8,
            chunk_size=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            moe_shared_expert_intermediate_size=16,
            n_group=1,
            topk_group=1,
        ),
        note="its scan clamps time steps and its single step does not; the twin that verifies clamps nothing",
    ),
    Row(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        _small(shared_expert_intermediate_size=16, **_DELTA, **_EXPERTS),
        error=1e-5,
    ),
    Row("qwen3_5", "Qwen3_5ForCausalLM", "Qwen3_5TextConfig", _small(**_DELTA), error=1e-4),
    Row(
        "qwen3_5_moe",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        _small(shared_expert_intermediate_size=16, **_DELTA, **_EXPERTS),
        error=1e-4,
    ),
    Row(
        "kimi_linear",
        "KimiLinearForCausalLM",
        "KimiLinearConfig",
        _small(num_local_experts=4, linear_head_dim=8, linear_num_heads=4, **_LATENT),
        error=1e-5,
    ),
    Row(
        "bailing_hybrid",
        "BailingHybridForCausalLM",
        "BailingHybridConfig",
        _small(num_local_experts=4, head_dim=8, **_LATENT),
        error=1e-5,
    ),
    Row("olmo_hybrid", "OlmoHybridForCausalLM", "OlmoHybridConfig", _small(**_DELTA), error=1e-5),
    Row(
        "lfm2",
        "Lfm2ForCausalLM",
        "Lfm2Config",
        _small(block_auto_adjust_ff_dim=False, **_CONVOLUTIONS),
        error=1e-12,
    ),
    Row(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        "Lfm2MoeConfig",
        _small(num_dense_layers=1, **_CONVOLUTIONS, **_EXPERTS),
        error=1e-12,
    ),
    Row(
        "lfm3",
        "Lfm3ForCausalLM",
        "Lfm3Config",
        _small(layer_types=["conv", "sliding_attention", "full_attention"], sliding_window=8, head_dim=8),
        error=1e-12,
    ),
    Row("zaya", "ZayaForCausalLM", "ZayaConfig", _small(), error=1e-12),
    Row(
        "inkling",
        "InklingForCausalLM",
        "InklingTextConfig",
        _small(**_INKLING),
        note="its sliding layers keep what the window needs, and snapshots hold references to it",
    ),
    Row(
        "inkling2",
        "Inkling2ForCausalLM",
        "Inkling2TextConfig",
        _small(**_INKLING),
        error=None,
    ),
    Row(
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        "DeepseekV4Config",
        _small(
            intermediate_size=None,
            num_key_value_heads=1,
            head_dim=16,
            q_lora_rank=16,
            partial_rotary_factor=0.5,
            num_experts_per_tok=2,
            n_routed_experts=4,
            moe_intermediate_size=16,
            layer_types=["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
            mlp_layer_types=["moe"] * 3,
            compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
            sliding_window=8,
            o_groups=2,
            o_lora_rank=8,
            index_n_heads=4,
            index_head_dim=16,
            index_topk=4,
            hc_mult=2,
        ),
        error=1e-5,
        note="its compressors keep buffers that no cropping restores",
    ),
    Row(
        "minimax",
        "MiniMaxForCausalLM",
        "MiniMaxConfig",
        _small(
            head_dim=8,
            layer_types=["full_attention", "linear_attention", "full_attention"],
            block_size=8,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
    ),
    Row(
        "minimax (linear 1st)",
        "MiniMaxForCausalLM",
        "MiniMaxConfig",
        _small(
            head_dim=8,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            block_size=8,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        mode="plain",
        reason="self-check: ",
        note="its masks count the tokens in the first layer's cache, which has none",
    ),
    Row(
        "rwkv",
        "RwkvForCausalLM",
        "RwkvConfig",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            attention_hidden_size=32,
            context_length=512,
            tie_word_embeddings=False,
            **_IDS,
        ),
    ),
    Row(
        "xlstm",
        "xLSTMForCausalLM",
        "xLSTMConfig",
        dict(vocab_size=VOCAB, hidden_size=128, num_hidden_layers=2, num_heads=4, chunk_size=8, **_IDS),
    ),
    Row(
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
            initializer_range=0.25,
            tie_word_embeddings=False,
            **_IDS,
        ),
        mode="plain",
        reason=FORGETS,
    ),
    Row(
        "falcon_mamba",
        "FalconMambaForCausalLM",
        "FalconMambaConfig",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
            initializer_range=0.25,
            tie_word_embeddings=False,
            **_IDS,
        ),
        mode="plain",
        reason=FORGETS,
    ),
    Row(
        "jamba",
        "JambaForCausalLM",
        "JambaConfig",
        _small(
            num_hidden_layers=4,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=2,
            num_experts_per_tok=1,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        mode="plain",
        reason=FORGETS,
    ),
    Row(
        "zamba",
        "ZambaForCausalLM",
        "ZambaConfig",
        _small(
            num_hidden_layers=4,
            layer_types=["mamba", "hybrid", "mamba", "hybrid"],
            attn_layer_period=2,
            attn_layer_offset=1,
            n_mamba_heads=2,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        mode="plain",
        reason=FORGETS,
    ),
    Row(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        _small(lru_width=32, attention_window_size=16, head_dim=8, intermediate_size=96, max_position_embeddings=None),
        mode="plain",
        reason=FORGETS,
        note="keeps its state in its modules: `generate` on a prompt of one token goes on from the call before",
        shortest=2,
    ),
    Row(
        "openai-gpt",
        "OpenAIGPTLMHeadModel",
        "OpenAIGPTConfig",
        dict(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=512,
            initializer_range=0.25,
            tie_word_embeddings=False,
        ),
        mode="plain",
        reason="takes no cache",
    ),
]
BY_NAME = {row.name: row for row in ROWS}
