"""What experts and their neurons pass on: they are one module, so it is worked out from what enters that module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pia.ipad.importance.points import HasPoints


@dataclass(frozen=True)
class ExpertPart:
    """What one expert makes of the tokens that were sent to it; all float64."""

    expert: int
    tokens: torch.Tensor
    """`[n]`: which ones, of all rows one after the other."""
    activations: torch.Tensor
    """`[n, neurons]`, each times the router's weight of this expert for the token."""
    down: torch.Tensor
    """`[hidden, neurons]`: `activations @ down.T` is what joins the output."""


@dataclass(frozen=True)
class Routed:
    """What enters the experts of a layer."""

    layer: int
    experts: Any
    """Weights `gate_up_proj` `[experts, 2 * neurons, hidden]` and `down_proj` `[experts, hidden, neurons]`."""
    hidden: torch.Tensor
    """`[tokens, hidden]`, of all rows one after the other."""
    chosen: torch.Tensor
    """`[tokens, experts a token]`."""
    shares: torch.Tensor
    """`[tokens, experts a token]`: the router's weights."""

    @torch.no_grad()
    def parts(self) -> Iterator[ExpertPart]:
        """Each expert that got a token, calculated as the model does, in its dtype, but whatever kernel it runs."""
        for expert in range(len(self.experts.down_proj)):
            tokens, places = torch.where(self.chosen == expert)
            if not len(tokens):
                continue
            gate, up = functional.linear(self.hidden[tokens], self.experts.gate_up_proj[expert]).chunk(2, dim=-1)
            activations = (self.experts.act_fn(gate) * up).double() * self.shares[tokens, places, None].double()
            yield ExpertPart(expert, tokens, activations, self.experts.down_proj[expert].double())


def sizes_of_parts(routed: Routed, token_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much neurons and experts write to the stream, summed over tokens and, for neurons, over experts.

    Args:
        routed: of a layer.
        token_weights: `[tokens]`, float64.

    Returns:
        `[neurons]`: |activation| x router's weight x norm of the neuron's outgoing weights in that expert; and
        `[experts]`: norm of the expert's output x router's weight.
    """
    num_experts, _, num_neurons = routed.experts.down_proj.shape
    neurons, experts = token_weights.new_zeros(num_neurons), token_weights.new_zeros(num_experts)
    for part in routed.parts():
        weights = token_weights[part.tokens]
        neurons += (weights @ part.activations.abs()) * torch.linalg.vector_norm(part.down, dim=0)
        experts[part.expert] = weights @ torch.linalg.vector_norm(part.activations @ part.down.T, dim=-1)
    return neurons, experts


def effects_of_parts(
    routed: Routed, gradient: torch.Tensor, token_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """First-order change of the loss when a neuron falls silent in all experts, and when an expert does.

    The derivative by a gate on a neuron, or on an expert behind the router, needs nothing but the gradient of the
    layer's output; so it costs the same whatever kernel runs the experts, and no gradients of weights.

    Args:
        routed: of a layer.
        gradient: of the output of the experts, `[tokens, hidden]`.
        token_weights: `[rows, tokens of a row]`, float64.

    Returns:
        `[rows, neurons]` and `[rows, experts]`, summed over each row's tokens.
    """
    num_experts, _, num_neurons = routed.experts.down_proj.shape
    num_rows, length = token_weights.shape
    neurons, experts = token_weights.new_zeros(num_rows, num_neurons), token_weights.new_zeros(num_rows, num_experts)
    gradient = gradient.double()
    for part in routed.parts():
        # a product with a matrix of rows and tokens, since adding by index has no fixed order on a GPU
        rows = functional.one_hot(part.tokens // length, num_rows).T * token_weights.flatten()[part.tokens]
        effects = rows @ (part.activations * (gradient[part.tokens] @ part.down))
        neurons += effects
        experts[:, part.expert] = effects.sum(dim=-1)
    return neurons, experts


@contextmanager
def watching_experts(structure: HasPoints, model: Any, see: Callable[[Routed, torch.Tensor], None]) -> Iterator[None]:
    """Lets `see` look at what enters the experts of each layer, and at their output `[tokens, hidden]`.

    Nothing is watched in a dense model. No hook outlives the block.
    """
    layers = structure.layers(model) if structure.shape.num_experts else ()
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(_watch(index, structure.experts(layer), see).remove)
        yield


def _watch(layer: int, experts: Any, see: Callable[[Routed, torch.Tensor], None]) -> Any:
    def after(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        hidden, chosen, shares = (value.detach() for value in inputs)
        see(Routed(layer, experts, hidden, chosen, shares), output)

    return experts.register_forward_hook(after)
