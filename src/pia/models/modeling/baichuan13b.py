"""Baichuan-13B and Baichuan2-13B: a Llama without rotary positions; ALiBi says how far tokens are apart.

Head h adds `-slope_h * distance` to its scores (arXiv 2108.12409; slopes by `alibi_slopes`). The distance is that of
positions, never of slots: in a draft tree several slots share a position, and in a padded batch slot and position
differ. So the position of every token is remembered next to its keys (`slots.py`), and any cache, mask and order of
rows is right as long as `position_ids` are. Counted from the query, the bias of near tokens is small and so exact in
16 bits too.

Baichuan2 divides each row of its output matrix by its norm at every step. That is a constant of the checkpoint, and
`pia convert` writes the divided matrix, so both generations are one class here.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.output_capturing import capture_outputs

from pia.models.modeling.blocks import PackedAttention, PreNormLayer, additive_mask, at_least_float32, text_positions
from pia.models.modeling.causal_lm import LogitsForward, OwnPreTrainedModel
from pia.models.modeling.slots import cached_length, num_slots, remember

_FARTHEST = 1 << 15
"""Distances are cut here, which is beyond any context: garbage in a hidden slot must not overflow 16 bits."""


class Baichuan13BConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a Baichuan model with ALiBi; the defaults are those of Baichuan2-13B."""

    model_type = "baichuan_13b"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 125696
    hidden_size: int = 5120
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False


def alibi_slopes(num_heads: int) -> list[float]:
    """How much a head minds distance (arXiv 2108.12409, section 3 and its published code).

    For a power of two the slopes are a geometric series that starts at its own ratio, `2^(-8/n)`. Other numbers take
    the series of the next smaller power and fill up with every second slope of the next larger one.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return slopes + between[: num_heads - power]


def alibi_bias(queries: torch.Tensor, slots: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """The bias of each head by distance, `[rows, heads, q, slots]`.

    Args:
        queries: positions of the tokens fed, int64 `[rows, q]`.
        slots: positions of the tokens in all slots, int64 `[rows, slots]`.
        num_heads: attention heads.
        dtype: of the result.
    """
    distances = (queries[:, None, :, None] - slots[:, None, None, :]).clamp(0, _FARTHEST)
    wide = at_least_float32(dtype)
    slopes = torch.tensor(alibi_slopes(num_heads), dtype=wide, device=queries.device)
    return (distances.to(wide) * -slopes[:, None, None]).to(dtype)


class Baichuan13BRMSNorm(nn.Module):
    """Root mean square norm, in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.to(at_least_float32(hidden_states.dtype))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden_states.dtype)


class Baichuan13BMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Baichuan13BConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.act(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return output


class Baichuan13BDecoderLayer(PreNormLayer):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, config: Baichuan13BConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = Baichuan13BRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = PackedAttention(config, layer_idx, bias=False)
        self.post_attention_layernorm = Baichuan13BRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Baichuan13BMLP(config)


class Baichuan13BPreTrainedModel(OwnPreTrainedModel):
    """What Transformers wants to know of the family."""

    config: Baichuan13BConfig
    config_class = Baichuan13BConfig
    _no_split_modules: ClassVar[list[str]] = ["Baichuan13BDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": Baichuan13BDecoderLayer,
        "attentions": PackedAttention,
    }


class Baichuan13BModel(Baichuan13BPreTrainedModel):
    """The decoder without its output matrix."""

    def __init__(self, config: Baichuan13BConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([Baichuan13BDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = Baichuan13BRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the layers; arguments as for any decoder of Transformers.

        `attention_mask` is a padding mask `[rows, slots]` or a mask of the caller's own `[rows, 1, q, slots]`,
        additive or boolean; `position_ids` `[rows, q]` are positions in the text.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        start = cached_length(past_key_values)
        positions = text_positions(position_ids, attention_mask, hidden_states, start)
        slots = self._slot_positions(positions, attention_mask, past_key_values, start)
        mask = additive_mask(attention_mask, hidden_states, start, slots.shape[1])
        mask = mask + alibi_bias(positions, slots, self.config.num_attention_heads, mask.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, past_key_values=past_key_values)
        if past_key_values is not None and start == 0:
            remember(past_key_values, self.config.num_hidden_layers, positions[..., None])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _slot_positions(
        self, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any, start: int
    ) -> torch.Tensor:
        """Positions of the tokens in all slots, `[rows, slots]`.

        A cache that is still empty is told only after its first forward, so that its first layer is a model's own.
        """
        if start > 0:
            return remember(cache, self.config.num_hidden_layers, positions[..., None])[..., 0]
        unused = num_slots(cache, positions.shape[1], mask) - positions.shape[1]
        return nn.functional.pad(positions, (0, unused))


class Baichuan13BForCausalLM(LogitsForward, Baichuan13BPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Baichuan-13B or Baichuan2-13B with its output matrix."""

    def __init__(self, config: Baichuan13BConfig) -> None:
        super().__init__(config)
        self.model = Baichuan13BModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
