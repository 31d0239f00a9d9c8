"""Steps of fixed form: a model's forward as a function of tensors alone, compiled or captured once, run many times."""
