"""GLM (GLM-10b, GLM-large-chinese and their kin): fills a blank in a text (arXiv 2103.10360).

The text is a context with a mask token in it, `[CLS] ... [gMASK] ... <|endoftext|>`, and behind it the piece that goes
where the mask stands: `<|startofpiece|>` and what is generated. Context tokens see the whole context and none of the
piece; a token of the piece sees the context and the piece up to itself. Every token has two positions, both embedded:

    token                 context, n-th       piece, k-th (<|startofpiece|> is the first)
    position              n                   that of the mask token
    block position        0                   k, from 1

All that is decided by where the piece begins and where the mask stands, so a forward takes what any decoder takes:
plain `position_ids`, the place of a token in the whole text. The forward over the prompt finds both places in
`input_ids` and remembers them in the cache for each row (`slots.py`); from then on a text position says all. So
`generate`, padded batches, beams and draft trees need nothing of their own. A prompt may begin with padding, and a mask
of the caller's own, `[rows, 1, q, slots]`, may stay causal: the context is opened in it.

A text without `<|startofpiece|>` is read as the original reads a bare text: causally, with block position 0. A prompt
with a mask token and no piece, or the other way round, is a mistake and refused. For training and scoring,
`position_ids` may also be both positions, `[rows, 2, q]`, with the mask that belongs to them and no cache.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.output_capturing import capture_outputs

from pia.errors import PromptError
from pia.models.modeling.blocks import PackedAttention, PreNormLayer, additive_mask, text_positions
from pia.models.modeling.causal_lm import LogitsForward, OwnPreTrainedModel
from pia.models.modeling.slots import cached_length, num_slots, remember

_NO_PIECE = 1 << 30
"""Where the piece begins in a text that has none."""


class Glm10BConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes and special tokens of a GLM; the defaults are those of GLM-10b."""

    model_type = "glm_10b"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "max_sequence_length"}

    vocab_size: int = 50304
    hidden_size: int = 4096
    intermediate_size: int | None = None
    num_hidden_layers: int = 48
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    max_sequence_length: int = 1024
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    sop_token_id: int = 50257
    mask_token_ids: list[int] | None = None
    pad_token_id: int | None = 50256
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 50258
    tie_word_embeddings: bool = True


class Glm10BMLP(nn.Module):
    """Feed-forward with GELU."""

    def __init__(self, config: Glm10BConfig) -> None:
        super().__init__()
        size = config.intermediate_size or 4 * config.hidden_size
        self.up_proj = nn.Linear(config.hidden_size, size)
        self.down_proj = nn.Linear(size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.act(self.up_proj(hidden_states)))
        return output


class Glm10BLayer(PreNormLayer):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, config: Glm10BConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = PackedAttention(config, layer_idx, bias=True)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Glm10BMLP(config)


class Glm10BPreTrainedModel(OwnPreTrainedModel):
    """What Transformers wants to know of the family."""

    config: Glm10BConfig
    config_class = Glm10BConfig
    _no_split_modules: ClassVar[list[str]] = ["Glm10BLayer"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": Glm10BLayer, "attentions": PackedAttention}


class Glm10BModel(Glm10BPreTrainedModel):
    """The layers without the output matrix."""

    def __init__(self, config: Glm10BConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_sequence_length + 1, config.hidden_size)
        self.embed_block_positions = nn.Embedding(config.max_sequence_length + 1, config.hidden_size)
        self.layers = nn.ModuleList([Glm10BLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
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
        """Runs the layers; arguments as for any decoder of Transformers, their meaning as in the module's text.

        Raises:
            PromptError: the prompt has a mask token and no piece, or a piece and no mask token.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is not None and position_ids.dim() == 3:
            return self._run_as_told(hidden_states, attention_mask, position_ids, past_key_values, use_cache)
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        start = cached_length(past_key_values)
        positions = text_positions(position_ids, attention_mask, hidden_states, start)
        mask = additive_mask(
            attention_mask, hidden_states, start, num_slots(past_key_values, positions.shape[1], attention_mask)
        )
        if start > 0:
            places = self._recall(past_key_values, positions, input_ids, attention_mask)
        else:
            piece_slots, places = self._find_piece(input_ids, positions, attention_mask)
            mask = _open_context(mask, piece_slots)
        hidden_states = self._run(hidden_states, mask, _two_positions(positions, places), past_key_values)
        if past_key_values is not None and start == 0:
            remember(past_key_values, self.config.num_hidden_layers, places[:, None].expand(*positions.shape, 2))
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def _run_as_told(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        cache: Any,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPast:
        """A forward whose two positions the caller gives."""
        if cache is not None or use_cache:
            raise ValueError(
                "position_ids [rows, 2, q] work without a cache only; to generate, leave position_ids out or give "
                "positions in the text [rows, q]"
            )
        mask = additive_mask(mask, hidden_states, 0, hidden_states.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=self._run(hidden_states, mask, position_ids, None))

    def _run(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """All layers; `position_ids` `[rows, 2, q]`."""
        position, block_position = position_ids.unbind(1)
        hidden_states = hidden_states + self.embed_positions(position) + self.embed_block_positions(block_position)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, past_key_values=cache)
        output: torch.Tensor = self.norm(hidden_states)
        return output

    def _find_piece(
        self, input_ids: torch.Tensor | None, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each row's piece begins.

        Returns:
            the slot of `<|startofpiece|>`, int64 `[rows]`, -1 where there is none; and its text position and that of
            the mask token, int64 `[rows, 2]`.
        """
        if input_ids is None:
            raise ValueError("a prompt given as inputs_embeds does not tell context from piece; give input_ids")
        is_sop, is_mask = self._is_sop(input_ids), self._is_mask_token(input_ids)
        if mask is not None and mask.dim() == 2:
            is_token = mask[:, : input_ids.shape[1]].bool()
            is_sop, is_mask = is_sop & is_token, is_mask & is_token
        has_piece, slots = is_sop.max(dim=-1)  # of equal values the first one counts
        in_context = torch.arange(input_ids.shape[1], device=slots.device) < slots[:, None]
        has_mask, mask_slots = (is_mask & (in_context | ~has_piece[:, None])).max(dim=-1)
        if bool((has_piece != has_mask).any()):
            raise PromptError(_refusal(lacks_piece=bool((has_mask & ~has_piece).any())))
        places = positions.gather(1, torch.stack([slots, mask_slots], dim=1))
        nowhere = places.new_tensor([_NO_PIECE, 0])
        return slots.masked_fill(~has_piece, -1), torch.where(has_piece[:, None], places, nowhere)

    def _recall(
        self, cache: Any, positions: torch.Tensor, input_ids: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The places found in the prompt, `[rows, 2]`; every slot of the prompt knows them, so its first one does."""
        places = remember(cache, self.config.num_hidden_layers, positions.new_zeros((*positions.shape, 2)))[:, 0]
        is_chunk = positions.shape[1] > 1 and (mask is None or mask.dim() == 2)  # of a prompt, not a draft tree
        if is_chunk and input_ids is not None and bool(self._comes_late(input_ids, places).any()):
            raise PromptError(_refusal(lacks_piece=True))
        return places

    def _comes_late(self, input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Bool `[rows]`: whether a piece begins in a text whose first part was read as one without."""
        return self._is_sop(input_ids).any(dim=-1) & (places[:, 0] == _NO_PIECE)

    def _is_sop(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.eq(input_ids, self.config.sop_token_id)

    def _is_mask_token(self, input_ids: torch.Tensor) -> torch.Tensor:
        mask_ids = torch.tensor(self.config.mask_token_ids or [], dtype=input_ids.dtype, device=input_ids.device)
        is_mask: torch.Tensor = torch.isin(input_ids, mask_ids)
        return is_mask


class Glm10BForCausalLM(LogitsForward, Glm10BPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """GLM with its output matrix, which is that of the token embeddings."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Glm10BConfig) -> None:
        super().__init__(config)
        self.model = Glm10BModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def as_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Makes a well-formed prompt of any token ids `[rows, length]`, at least 3 of them, for self-checks.

        The piece begins in the middle, so that both halves have something in them.
        """
        special = torch.tensor([self.config.sop_token_id, *(self.config.mask_token_ids or [])], device=input_ids.device)
        plain = next(token for token in range(len(special) + 1) if token not in special.tolist())
        prompt = input_ids.masked_fill(torch.isin(input_ids, special), plain)
        middle = prompt.shape[1] // 2
        prompt[:, middle // 2] = special[-1]
        prompt[:, middle] = special[0]
        return prompt


def _two_positions(positions: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Position and block position, `[rows, 2, q]`, of text positions `[rows, q]`."""
    piece, mask = places[:, :1], places[:, 1:]
    is_piece = positions >= piece
    position = torch.where(is_piece, mask, positions)
    return torch.stack([position, (positions - piece + 1) * is_piece], dim=1)


def _open_context(mask: torch.Tensor, piece_slots: torch.Tensor) -> torch.Tensor:
    """Lets the context see itself.

    Whatever `<|startofpiece|>` sees but itself is context, without padding, in whatever way the mask was made.

    Args:
        mask: additive, `[rows or 1, 1, q, slots]`, of a forward that begins a text.
        piece_slots: where the piece begins, `[rows]`, -1 for nowhere.
    """
    rows, q, slots = piece_slots.shape[0], mask.shape[2], mask.shape[3]
    mask = mask.expand(rows, -1, -1, -1)
    at = piece_slots.clamp(min=0)[:, None, None, None].expand(-1, mask.shape[1], 1, slots)
    is_key = (mask.gather(2, at) == 0) & _before(piece_slots, slots)[:, None, None, :]
    is_query = _before(piece_slots, q)[:, None, :, None]
    return mask.masked_fill(is_key & is_query, 0.0)


def _before(piece_slots: torch.Tensor, size: int) -> torch.Tensor:
    """Bool `[rows, size]`: the slots in front of the piece."""
    return torch.arange(size, device=piece_slots.device) < piece_slots[:, None]


def _refusal(*, lacks_piece: bool) -> str:
    if lacks_piece:
        return (
            "the prompt has a mask token but no <|startofpiece|> behind it (in its first part, if it is read in "
            "chunks); GLM's prompts are '[CLS] text with [gMASK] <|endoftext|> <|startofpiece|>', which the converted "
            "tokenizer writes around a text, and prefill_chunk_size must stay unset"
        )
    return (
        "the prompt has no mask token in front of <|startofpiece|>: say where to write, usually by a [gMASK] at the end"
    )
