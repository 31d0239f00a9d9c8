"""Where the prunable parts of a model are, and which sizes its stock configuration can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pia.errors import ShrinkError
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape
from pia.ipad.structure.axes import Dims, Kept, Sizes, dims_of
from pia.ipad.structure.config import build_config
from pia.ipad.structure.family import Family


@dataclass(frozen=True)
class Structure:
    """The map of one model. Accessors take the model, so that a map holds no weights."""

    map: Family
    config: Any
    shape: Shape
    sizes: Sizes
    is_tied: bool
    """Whether head and embedding are one weight."""

    @property
    def family(self) -> str:
        """As configurations name it, such as `llama`."""
        return self.map.model_type

    @property
    def head_dim(self) -> int:
        """Size of a head; pruning never changes it."""
        return self.sizes.head_dim

    @property
    def queries_per_group(self) -> int:
        """Query heads that share a KV head."""
        return self.sizes.queries_per_group

    @property
    def ties_hidden_to_heads(self) -> bool:
        """Whether the stock configuration cannot hold a head size, so that the hidden size is heads x head size."""
        return self.map.names.head_dim is None

    def check(self, shape: Shape) -> None:
        """Whether the stock configuration can hold a shape.

        Raises:
            ShrinkError: it cannot, or the shape is larger than the model.
        """
        self.config_for(shape)

    def config_for(self, shape: Shape, layers: Sequence[int] | None = None) -> Any:
        """The stock configuration of a smaller model.

        Args:
            shape: its sizes.
            layers: which layers stay, for fields that have an entry for each; the first ones when None.

        Raises:
            ShrinkError: it cannot hold the shape, or the shape is larger than the model.
        """
        if not shape.fits_in(self.shape):
            raise ShrinkError(f"the shape {shape} is larger than the model, {self.shape}; no size can grow")
        self._check_hidden(shape)
        stay = range(shape.num_layers) if layers is None else layers
        assert len(stay) == shape.num_layers, f"{len(stay)} layers stay, but the shape has {shape.num_layers}"
        return build_config(self.config, self.map, self.sizes, shape, stay, is_tied=self.is_tied)

    def vllm_problem(self, shape: Shape) -> str | None:
        """Why vLLM would not load a model of this shape although Transformers does; None where it would."""
        heads = shape.num_kv_heads * self.queries_per_group
        if not self.map.vllm_ties_hidden_to_heads or shape.hidden_size == heads * self.head_dim:
            return None
        return (
            f"vLLM takes hidden / heads for the size of a head of {self.family} models: {heads} heads of "
            f"{self.head_dim} need hidden={heads * self.head_dim}"
        )

    def rescales(self, shape: Shape) -> bool:
        """Whether weights of the smaller model take up a factor that its code derives from the hidden size."""
        return self.map.compensate is not None and shape.hidden_size != self.shape.hidden_size

    def _check_hidden(self, shape: Shape) -> None:
        heads = shape.num_kv_heads * self.queries_per_group
        if self.ties_hidden_to_heads and shape.hidden_size != heads * self.head_dim:
            raise ShrinkError(
                f"a {self.family} configuration has no size of a head: the hidden size is always heads x "
                f"{self.head_dim}, so {heads} heads need hidden={heads * self.head_dim}, not {shape.hidden_size}"
            )
        if reason := self.map.refuse_hidden(self.config, shape.hidden_size):
            raise ShrinkError(f"this {self.family} model cannot be cut to {shape}: {reason}")

    def backbone(self, model: Any) -> Any:
        """The module that yields `last_hidden_state` `[batch, length, hidden]`, its final norm included."""
        return model.get_submodule(self.map.backbone)

    def layers(self, model: Any) -> Any:
        """The list of decoder layers."""
        return model.get_submodule(self.map.layers)

    def attention_output(self, layer: Any) -> Any:
        """The module of a layer whose input is `[..., heads * head_dim]`."""
        return layer.get_submodule(self.map.attention_output)

    def ffn_output(self, layer: Any) -> Any:
        """The module of a layer whose input is `[..., ffn]`."""
        return layer.get_submodule(self.map.ffn_output)

    def norms(self, model: Any) -> list[Any]:
        """Modules whose output `[..., hidden]` is the residual stream, normalised, the final norm last."""
        inside = [layer.get_submodule(name) for layer in self.layers(model) for name in self.map.layer_norms]
        return inside + _existing(model, (self.map.final_norm,))

    def branch_norms(self, model: Any) -> list[Any]:
        """Norms over `[..., hidden]` at the end of a branch, before it joins the stream; in few families."""
        return [layer.get_submodule(name) for layer in self.layers(model) for name in self.map.branch_norms]

    def stream_starts(self, model: Any) -> list[Any]:
        """Modules whose outputs `[..., hidden]` add up to the stream that the first layer reads."""
        return _existing(model, self.map.stream_starts)

    def head(self, model: Any) -> Any:
        """The linear layer that makes scores over the vocabulary of the backbone's output."""
        return model.get_submodule(self.map.head)

    def logits(self, model: Any, hidden: Any) -> Any:
        """What the model makes of its backbone's output: the head, soft caps and scales included.

        Args:
            model: the model.
            hidden: `[..., hidden]`.

        Returns:
            `[..., vocabulary]`.
        """
        return self.map.logits(model.config, self.head(model)(hidden))

    def place(self, name: str) -> tuple[int | None, Dims | None]:
        """The layer of a weight (none if outside of the layers) and what its dimensions count (none if unknown)."""
        prefix = self.map.layers + "."
        if not name.startswith(prefix):
            return None, dims_of(name, self.map.outside)
        layer, _, rest = name[len(prefix) :].partition(".")
        return int(layer), dims_of(rest, self.map.inside)

    def kept(self, selection: Selection, row: int | None = None) -> Kept:
        """Indices that stay in the layer at a place among those that stay, or outside of the layers."""
        return Kept(self.sizes, selection, row)

    def check_selection(self, selection: Selection) -> None:
        """Whether a selection picks units of this model, for a shape that its configuration can hold.

        Raises:
            ShrinkError: it does not.
        """
        rows = [(self.shape.num_kv_heads, row) for row in selection.kv_groups]
        rows += [(self.shape.ffn_size, row) for row in selection.ffn]
        rows += [(self.shape.num_experts, row) for row in selection.experts]
        rows += [(self.shape.num_layers, selection.layers), (self.shape.hidden_size, selection.hidden)]
        num_rows = {len(selection.layers), len(selection.kv_groups), len(selection.ffn)}
        num_rows |= {len(selection.experts)} if self.shape.num_experts else set()
        if len(num_rows) > 1 or bool(selection.experts) != bool(self.shape.num_experts):
            raise ShrinkError("the selection does not have a row of units for each layer that stays; make it anew")
        for num, indices in rows:
            if not indices or list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < num:
                raise ShrinkError(
                    f"the selection does not fit this model of {self.shape}: of {num} units it picks "
                    f"{list(indices)[:8]}...; make it from this model's scores"
                )
        self.check(selection.shape)


def _existing(model: Any, paths: Sequence[str]) -> list[Any]:
    parents = [(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths]
    found = [getattr(parent, name, None) for parent, name in parents]
    return [module for module in found if module is not None]
