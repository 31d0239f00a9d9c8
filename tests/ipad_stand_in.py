"""A structure map of Llama, as small as the tests of importance and plans need it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from pia.errors import ShrinkError
from pia.ipad.shape import Shape


@dataclass
class LlamaMap:
    config: object
    ties_hidden_to_heads: bool = False
    family = "llama"

    @property
    def shape(self) -> Shape:
        c = self.config
        return Shape(c.num_hidden_layers, c.num_key_value_heads, c.intermediate_size, c.hidden_size)

    @property
    def head_dim(self) -> int:
        return self.config.head_dim

    @property
    def queries_per_group(self) -> int:
        return self.config.num_attention_heads // self.config.num_key_value_heads

    def check(self, shape):
        if not shape.fits_in(self.shape) or shape.num_experts:
            raise ShrinkError(f"{shape} is not inside {self.shape}")

    def config_for(self, shape, layers=None):
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = shape.num_layers
        config.num_key_value_heads = shape.num_kv_heads
        config.num_attention_heads = shape.num_kv_heads * self.queries_per_group
        config.intermediate_size, config.hidden_size = shape.ffn_size, shape.hidden_size
        return config

    def layers(self, model):
        return model.model.layers

    def attention_output(self, layer):
        return layer.self_attn.o_proj

    def ffn_output(self, layer):
        return layer.mlp.down_proj

    def norms(self, model):
        layers = self.layers(model)
        return [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)] + [
            model.model.norm
        ]


def llama_map(model) -> LlamaMap:
    return LlamaMap(model.config)
