"""Structure maps: which dimension of which weight counts layers, heads, neurons or channels, family by family."""

from pia.ipad.structure.find import structure_of, supported_families
from pia.ipad.structure.structure import Structure

__all__ = ["Structure", "structure_of", "supported_families"]
