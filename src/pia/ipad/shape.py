"""The sizes of a decoder that pruning can change: the same in every layer, as stock configurations hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from pia.errors import ShrinkError

_NAMES = {
    "layers": "num_layers",
    "kv_heads": "num_kv_heads",
    "ffn": "ffn_size",
    "hidden": "hidden_size",
    "experts": "num_experts",
}
"""What a size is called on the command line, and in `Shape`."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; every layer has the same ones.

    The number of query heads follows from `num_kv_heads`, as each KV head keeps all queries of its group; the size of
    a head never changes, since rotary positions run through it.
    """

    num_layers: int
    num_kv_heads: int
    """KV groups in a layer."""
    ffn_size: int
    """Neurons of a feed-forward block; of each expert where there are some."""
    hidden_size: int
    num_experts: int = 0
    """Experts in a layer; 0 for dense models."""

    @classmethod
    def parse(cls, text: str, base: Shape) -> Shape:
        """Reads sizes such as `layers=4,ffn=512`; those not named are taken from `base`.

        Raises:
            ShrinkError: a name is unknown or given twice, or a size is no whole number from 1 to that of `base`.
        """
        sizes: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in _NAMES:
                raise ShrinkError(
                    f"a shape has no size {name!r}; name some of {', '.join(_NAMES)}, as layers=4,ffn=512"
                )
            if _NAMES[name] in sizes:
                raise ShrinkError(f"the shape {text!r} names {name} twice")
            most = getattr(base, _NAMES[name])
            if not value.isdecimal() or not 1 <= int(value) <= most:
                raise ShrinkError(f"{name}={value} is no size for this model: give a whole number from 1 to {most}")
            sizes[_NAMES[name]] = int(value)
        return replace(base, **sizes)

    def fits_in(self, other: Shape) -> bool:
        """Whether no size is larger than that of `other`."""
        return all(getattr(self, field.name) <= getattr(other, field.name) for field in fields(self))

    def __str__(self) -> str:
        sizes = {name: getattr(self, field) for name, field in _NAMES.items()}
        return ",".join(f"{name}={size}" for name, size in sizes.items() if size)
