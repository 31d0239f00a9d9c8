"""Tiny checkpoints in the layout and under the names of the originals, for the tests of `pia convert`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from original_formulas import rotary_decoders
from safetensors.torch import save_file

HIDDEN, HEADS, KV_HEADS, HEAD, INNER, LAYERS, VOCAB = 64, 4, 2, 16, 48, 2, 512
_COMMON = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "intermediate_size": INNER,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def _remote(name: str) -> dict:
    return {"AutoConfig": f"configuration_{name}.Config", "AutoModelForCausalLM": f"modeling_{name}.Model"}


_QWEN = {
    "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "auto_map": _remote("qwen"),
    "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
    "intermediate_size": 2 * INNER, "kv_channels": HEAD, "layer_norm_epsilon": 1e-6, "seq_length": 96,
    "max_position_embeddings": 128, "rotary_emb_base": 10000, "rotary_pct": 1.0, "no_bias": True,
    "scale_attn_weights": True, "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False,
}  # fmt: skip
_CHATGLM = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": _remote("chatglm"),
    "_name_or_path": "THUDM/chatglm2-6b", "add_bias_linear": False, "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": INNER, "hidden_size": HIDDEN, "kv_channels": HEAD, "layernorm_epsilon": 1e-5,
    "multi_query_attention": True, "multi_query_group_num": KV_HEADS, "num_attention_heads": HEADS,
    "num_layers": LAYERS, "original_rope": True, "padded_vocab_size": VOCAB, "post_layer_norm": True,
    "rmsnorm": True, "seq_length": 128, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_INTERNLM2 = {
    **_COMMON, "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"],
    "auto_map": _remote("internlm2"), "num_key_value_heads": KV_HEADS, "bias": False, "rope_theta": 1_000_000,
    "pad_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "baichuan": {
        **_COMMON, "model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"], "auto_map": _remote("baichuan")
    },
    "baichuan2": {
        **_COMMON, "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"],
        "auto_map": _remote("baichuan"), "z_loss_weight": 0, "model_max_length": 128,
    },
    "internlm": {
        **_COMMON, "model_type": "internlm", "architectures": ["InternLMForCausalLM"],
        "auto_map": _remote("internlm"), "bias": True,
    },
    "internlm-20b": {
        **_COMMON, "model_type": "internlm", "architectures": ["InternLMForCausalLM"],
        "auto_map": _remote("internlm"), "bias": False, "num_key_value_heads": HEADS, "rope_theta": 10000.0,
    },
    "internlm-dynamic": {
        **_COMMON, "model_type": "internlm", "architectures": ["InternLMForCausalLM"],
        "auto_map": _remote("internlm"), "bias": True, "max_position_embeddings": 12,
        "rotary": {"base": 20_000, "type": "dynamic"},
    },
    "internlm2": _INTERNLM2,
    "internlm2-dynamic": {**_INTERNLM2, "bias": True, "rope_scaling": {"type": "dynamic", "factor": 2.0},
                          "max_position_embeddings": 12},
    "internlm2-linear": {**_INTERNLM2, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen": _QWEN,
    "chatglm2": _CHATGLM,
    "chatglm2-32k": {**_CHATGLM, "rope_ratio": 16, "test_rope": "positions"},
    "chatglm3-32k": {**_CHATGLM, "rope_ratio": 50, "test_rope": "base", "_name_or_path": "THUDM/chatglm3-6b-32k"},
    "xverse": {**_COMMON, "model_type": "xverse", "architectures": ["XverseForCausalLM"],
               "auto_map": _remote("xverse")},
    "yi": {**_COMMON, "model_type": "Yi", "architectures": ["YiForCausalLM"], "auto_map": _remote("yi"),
           "num_key_value_heads": KV_HEADS, "rope_theta": 5_000_000.0},
}  # fmt: skip
FORMULAS = {
    "baichuan": rotary_decoders.baichuan,
    "internlm": rotary_decoders.internlm,
    "internlm2": rotary_decoders.internlm2,
    "qwen": rotary_decoders.qwen,
    "chatglm": rotary_decoders.chatglm,
    "xverse": rotary_decoders.llama_by_another_name,
    "Yi": rotary_decoders.llama_by_another_name,
}
REMOTE_CODE = {
    "chatglm2-32k": ("modeling_chatglm.py", "seq_idx = torch.arange(seq_len) / self.rope_ratio\n"),
    "chatglm3-32k": ("modeling_chatglm.py", "base = base * self.rope_ratio\n"),
}
TARGETS = {
    "baichuan": "llama", "internlm": "llama", "internlm2": "llama", "qwen": "qwen2", "chatglm": "glm",
    "xverse": "llama", "Yi": "llama",
}  # fmt: skip


def reference_logits(name: str, state: dict, ids: torch.Tensor) -> torch.Tensor:
    """Logits `[length, vocab]` by the original's formulas."""
    config = CONFIGS[name]
    return FORMULAS[config["model_type"]]({key: value.double() for key, value in state.items()}, config, ids)


def original_state(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Random weights under the original names; `RandomState` gives the same numbers in every version of numpy."""
    rng = np.random.RandomState(seed)
    state = {}
    for key, shape in original_shapes(CONFIGS[name]).items():
        values = torch.from_numpy(rng.standard_normal(shape))
        is_norm = len(shape) == 1 and "bias" not in key
        state[key] = (1 + 0.1 * values if is_norm else 0.25 * values).to(dtype)
    return state


def original_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the original modeling code declares them."""
    kind = config["model_type"]
    shapes = dict(_OUTER[kind])
    prefix = {"qwen": "transformer.h.", "chatglm": "transformer.encoder.layers."}.get(kind, "model.layers.")
    for layer in range(LAYERS):
        for part, shape in _layer(kind, config).items():
            shapes[f"{prefix}{layer}.{part}"] = shape
    return shapes


_LLAMA_OUTER = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)
}  # fmt: skip
_OUTER = {
    **dict.fromkeys(("baichuan", "internlm", "xverse", "Yi"), _LLAMA_OUTER),
    "internlm2": {
        "model.tok_embeddings.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
        "output.weight": (VOCAB, HIDDEN),
    },
    "qwen": {
        "transformer.wte.weight": (VOCAB, HIDDEN), "transformer.ln_f.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    },
    "chatglm": {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB, HIDDEN),
    },
}  # fmt: skip


def _layer(kind: str, config: dict) -> dict[str, tuple[int, ...]]:
    packed = HIDDEN + 2 * KV_HEADS * HEAD
    if kind == "internlm2":
        shapes = {
            "attention.wqkv.weight": (packed, HIDDEN), "attention.wo.weight": (HIDDEN, HIDDEN),
            "feed_forward.w1.weight": (INNER, HIDDEN), "feed_forward.w3.weight": (INNER, HIDDEN),
            "feed_forward.w2.weight": (HIDDEN, INNER), "attention_norm.weight": (HIDDEN,),
            "ffn_norm.weight": (HIDDEN,),
        }  # fmt: skip
        biases = {"attention.wqkv.bias": (packed,), "attention.wo.bias": (HIDDEN,)}
        return {**shapes, **(biases if config["bias"] else {})}
    if kind == "qwen":
        return {
            "ln_1.weight": (HIDDEN,), "attn.c_attn.weight": (3 * HIDDEN, HIDDEN), "attn.c_attn.bias": (3 * HIDDEN,),
            "attn.c_proj.weight": (HIDDEN, HIDDEN), "ln_2.weight": (HIDDEN,), "mlp.w1.weight": (INNER, HIDDEN),
            "mlp.w2.weight": (INNER, HIDDEN), "mlp.c_proj.weight": (HIDDEN, INNER),
        }  # fmt: skip
    if kind == "chatglm":
        return {
            "input_layernorm.weight": (HIDDEN,), "self_attention.query_key_value.weight": (packed, HIDDEN),
            "self_attention.query_key_value.bias": (packed,), "self_attention.dense.weight": (HIDDEN, HIDDEN),
            "post_attention_layernorm.weight": (HIDDEN,), "mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN),
            "mlp.dense_4h_to_h.weight": (HIDDEN, INNER),
        }  # fmt: skip
    keys = (config.get("num_key_value_heads") or HEADS) * HEAD
    attention = {"self_attn.W_pack.weight": (3 * HIDDEN, HIDDEN)} if kind == "baichuan" else {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN), "self_attn.k_proj.weight": (keys, HIDDEN),
        "self_attn.v_proj.weight": (keys, HIDDEN),
    }  # fmt: skip
    attention["self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
    if config.get("bias"):
        attention |= {key.replace("weight", "bias"): shape[:1] for key, shape in attention.items()}
    norms = ("ln1", "ln2") if kind == "Yi" else ("input_layernorm", "post_attention_layernorm")
    return {
        **attention, "mlp.gate_proj.weight": (INNER, HIDDEN), "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER), f"{norms[0]}.weight": (HIDDEN,), f"{norms[1]}.weight": (HIDDEN,),
    }  # fmt: skip


def write_original(
    folder: Path, name: str, *, kind: str = "safetensors", num_shards: int = 1, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Writes a checkpoint as its makers did, without a tokenizer.

    Args:
        folder: is made.
        name: one of `CONFIGS`.
        kind: "safetensors", "bin", or "old" for the format that PyTorch had before 1.6.
        num_shards: files.
        dtype: of the weights.

    Returns:
        the weights.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    if name in REMOTE_CODE:
        file, text = REMOTE_CODE[name]
        (folder / file).write_text(text)
    state = original_state(name, dtype=dtype)
    _write_weights(folder, {**state, **_buffers(name)}, kind, num_shards)
    return state


def _buffers(name: str) -> dict[str, torch.Tensor]:
    """Buffers that some originals stored and no stock model wants."""
    if name == "baichuan":
        return {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(HEAD // 2)}
    return {"transformer.rotary_pos_emb.inv_freq": torch.ones(HEAD // 4)} if name == "chatglm2" else {}


def _write_weights(folder: Path, state: dict[str, torch.Tensor], kind: str, num_shards: int) -> None:
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names = list(state)
    weight_map = {}
    for number in range(num_shards):
        part = {name: state[name] for name in names[number::num_shards]}
        number_of = f"-{number + 1:05}-of-{num_shards:05}" if num_shards > 1 else ""
        file = f"{stem}{number_of}.{suffix}"
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=kind == "bin")
        weight_map.update(dict.fromkeys(part, file))
    if num_shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
