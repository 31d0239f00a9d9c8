"""How much each layer, KV group, neuron and hidden channel of a model matters, measured over a calibration set."""

from pia.ipad.importance.default_loss import sampled_teacher_loss
from pia.ipad.importance.measure import LAYER_METHODS, METHODS, measure_importance

__all__ = ["LAYER_METHODS", "METHODS", "measure_importance", "sampled_teacher_loss"]
