"""IPAD: iterative pruning and distillation of a model into a smaller stock checkpoint."""
