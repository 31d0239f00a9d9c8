"""How much each unit of a model matters, from layers to hidden channels, measured over a calibration set."""

from pia.ipad.importance.default_loss import sampled_teacher_loss
from pia.ipad.importance.measure import LAYER_METHODS, METHODS, measure_importance

__all__ = ["LAYER_METHODS", "METHODS", "measure_importance", "sampled_teacher_loss"]
