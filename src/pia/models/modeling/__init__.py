"""Modeling files of our own, for families that no class of Transformers fits."""

from __future__ import annotations


def register_families() -> None:
    """Makes Transformers' auto classes know the families of this package: `baichuan_13b` and `glm_10b`.

    `AutoConfig` and `AutoModelForCausalLM` then load the checkpoints that `pia convert` writes for Baichuan-13B,
    Baichuan2-13B and GLM. PIA calls this wherever it loads a model by name; call it once before your own
    `from_pretrained`. Calling it again does nothing. Imports torch and Transformers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from pia.models.modeling.baichuan13b import Baichuan13BConfig, Baichuan13BForCausalLM
    from pia.models.modeling.glm10b import Glm10BConfig, Glm10BForCausalLM

    for config, model in ((Baichuan13BConfig, Baichuan13BForCausalLM), (Glm10BConfig, Glm10BForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
