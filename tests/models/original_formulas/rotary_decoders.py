"""Logits of the rotary families from weights under their original names, written out family by family.

Each takes the state dict in float64, the original `config.json` and token ids `[length]`, and gives logits
`[length, vocab]`. Names, packings and the order of operations are those of the code that the checkpoints came with;
nothing of it and nothing of `pia.models.convert` is used here.
"""

from __future__ import annotations

from original_formulas.parts import angles, attend, rms_norm, silu, turn_halves, turn_neighbours


def baichuan(state, config, ids):
    """Baichuan-7B; Baichuan2-7B with `z_loss_weight`, whose head has rows of length 1."""
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    x = state["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        w = {name: state[f"model.layers.{layer}.{name}.weight"] for name in _BAICHUAN_LAYER}
        packed = rms_norm(x, w["input_layernorm"], eps) @ w["self_attn.W_pack"].T
        q, k, v = packed.view(len(ids), 3, heads, -1).unbind(1)
        angle = angles(len(ids), q.shape[-1])
        x = x + attend(turn_halves(q, angle), turn_halves(k, angle), v) @ w["self_attn.o_proj"].T
        h = rms_norm(x, w["post_attention_layernorm"], eps)
        x = x + (silu(h @ w["mlp.gate_proj"].T) * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    head = state["lm_head.weight"]
    if "z_loss_weight" in config:
        head = head / head.pow(2).sum(-1, keepdim=True).sqrt()
    return rms_norm(x, state["model.norm.weight"], eps) @ head.T


_BAICHUAN_LAYER = (
    "self_attn.W_pack", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "input_layernorm", "post_attention_layernorm",
)  # fmt: skip


def internlm(state, config, ids):
    """InternLM: Llama's layer with biases on all four matrices of the attention."""
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    x = state["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):

        def linear(h, name, prefix=f"model.layers.{layer}."):
            y = h @ state[f"{prefix}{name}.weight"].T
            return y + state[f"{prefix}{name}.bias"] if f"{prefix}{name}.bias" in state else y

        h = rms_norm(x, state[f"model.layers.{layer}.input_layernorm.weight"], eps)
        q, k, v = (linear(h, f"self_attn.{name}_proj").view(len(ids), heads, -1) for name in "qkv")
        rotary = config.get("rotary") or {}
        trained, kind = config["max_position_embeddings"], rotary.get("type", "origin")
        angle = _stretched_angles(rotary.get("base", 10_000), trained, kind, 1.0, len(ids), q.shape[-1])
        x = x + linear(attend(turn_halves(q, angle), turn_halves(k, angle), v), "self_attn.o_proj")
        h = rms_norm(x, state[f"model.layers.{layer}.post_attention_layernorm.weight"], eps)
        x = x + linear(silu(linear(h, "mlp.gate_proj")) * linear(h, "mlp.up_proj"), "mlp.down_proj")
    return rms_norm(x, state["model.norm.weight"], eps) @ state["lm_head.weight"].T


def internlm2(state, config, ids):
    """InternLM2: one matrix for all, ordered by key head: its queries, its key, its value."""
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    head = config["hidden_size"] // heads
    x = state["model.tok_embeddings.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        h = rms_norm(x, state[prefix + "attention_norm.weight"], eps)
        packed = h @ state[prefix + "attention.wqkv.weight"].T
        if config.get("bias"):
            packed = packed + state[prefix + "attention.wqkv.bias"]
        packed = packed.view(len(ids), kv_heads, -1, head)
        q = packed[:, :, :-2].reshape(len(ids), heads, head)
        k, v = packed[:, :, -2], packed[:, :, -1]
        scaling = config.get("rope_scaling") or {"type": "origin", "factor": 1.0}
        trained, base = config["max_position_embeddings"], config["rope_theta"]
        angle = _stretched_angles(base, trained, scaling["type"], scaling["factor"], len(ids), head)
        x = x + attend(turn_halves(q, angle), turn_halves(k, angle), v) @ state[prefix + "attention.wo.weight"].T
        if config.get("bias"):
            x = x + state[prefix + "attention.wo.bias"]
        h = rms_norm(x, state[prefix + "ffn_norm.weight"], eps)
        w1, w2, w3 = (state[f"{prefix}feed_forward.w{i}.weight"] for i in (1, 2, 3))
        x = x + (silu(h @ w1.T) * (h @ w3.T)) @ w2.T
    return rms_norm(x, state["model.norm.weight"], eps) @ state["output.weight"].T


def _stretched_angles(base, trained, kind, factor, length, head):
    """Beyond the trained length, "dynamic" raises the base so that the text fits (NTK); "linear" shrinks positions."""
    if kind == "dynamic" and length > trained:
        base *= (factor * length / trained - (factor - 1)) ** (head / (head - 2))
    return angles(length, head, base, factor if kind == "linear" else 1.0)


def qwen(state, config, ids):
    """Qwen: GPT-2's names, the gate is `w2`, and `intermediate_size` counts both halves. Up to `seq_length` tokens."""
    heads, eps = config["num_attention_heads"], config["layer_norm_epsilon"]
    x = state["transformer.wte.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}."
        h = rms_norm(x, state[prefix + "ln_1.weight"], eps)
        packed = h @ state[prefix + "attn.c_attn.weight"].T + state[prefix + "attn.c_attn.bias"]
        q, k, v = (part.reshape(len(ids), heads, -1) for part in packed.split(config["hidden_size"], -1))
        angle = angles(len(ids), q.shape[-1], config["rotary_emb_base"])
        x = x + attend(turn_halves(q, angle), turn_halves(k, angle), v) @ state[prefix + "attn.c_proj.weight"].T
        h = rms_norm(x, state[prefix + "ln_2.weight"], eps)
        up, gate = h @ state[prefix + "mlp.w1.weight"].T, h @ state[prefix + "mlp.w2.weight"].T
        x = x + (up * silu(gate)) @ state[prefix + "mlp.c_proj.weight"].T
    return rms_norm(x, state["transformer.ln_f.weight"], eps) @ state["lm_head.weight"].T


def chatglm(state, config, ids):
    """ChatGLM2 and 3: few key heads, and the first half of a head's channels turned in neighbouring pairs."""
    heads, kv_heads, head = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    eps = config["layernorm_epsilon"]
    x = state["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}."
        h = rms_norm(x, state[prefix + "input_layernorm.weight"], eps)
        packed = h @ state[prefix + "self_attention.query_key_value.weight"].T
        if config["add_qkv_bias"]:
            packed = packed + state[prefix + "self_attention.query_key_value.bias"]
        packed = packed.view(len(ids), heads + 2 * kv_heads, head)
        q, k, v = packed[:, :heads], packed[:, heads : heads + kv_heads], packed[:, heads + kv_heads :]
        angle = _chatglm_angles(config, len(ids), head // 2)
        context = attend(turn_neighbours(q, angle), turn_neighbours(k, angle), v)
        x = x + context @ state[prefix + "self_attention.dense.weight"].T
        h = rms_norm(x, state[prefix + "post_attention_layernorm.weight"], eps)
        gate, up = (h @ state[prefix + "mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (silu(gate) * up) @ state[prefix + "mlp.dense_4h_to_h.weight"].T
    x = rms_norm(x, state["transformer.encoder.final_layernorm.weight"], eps)
    return x @ state["transformer.output_layer.weight"].T


def _chatglm_angles(config, length, num_channels):
    """For long texts ChatGLM2 stretches the positions, and ChatGLM3 raises the base."""
    ratio = config.get("rope_ratio", 1)
    if config.get("test_rope") == "base":
        return angles(length, num_channels, 10_000.0 * ratio)
    return angles(length, num_channels, 10_000.0, ratio)


def llama_by_another_name(state, config, ids):
    """XVERSE, and Yi when it still called its norms ln1 and ln2."""
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    kv_heads = config.get("num_key_value_heads") or heads
    norms = ("ln1", "ln2") if config["model_type"] == "Yi" else ("input_layernorm", "post_attention_layernorm")
    x = state["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        w = {name: state[f"model.layers.{layer}.{name}.weight"] for name in (*norms, *_LLAMA_MATRICES)}
        h = rms_norm(x, w[norms[0]], eps)
        q = (h @ w["self_attn.q_proj"].T).view(len(ids), heads, -1)
        k, v = ((h @ w[f"self_attn.{name}_proj"].T).view(len(ids), kv_heads, -1) for name in "kv")
        angle = angles(len(ids), q.shape[-1], config.get("rope_theta", 10_000.0))
        x = x + attend(turn_halves(q, angle), turn_halves(k, angle), v) @ w["self_attn.o_proj"].T
        h = rms_norm(x, w[norms[1]], eps)
        x = x + (silu(h @ w["mlp.gate_proj"].T) * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    return rms_norm(x, state["model.norm.weight"], eps) @ state["lm_head.weight"].T


_LLAMA_MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
