"""How a student is trained."""

from __future__ import annotations

from dataclasses import dataclass

from pia.errors import ShrinkError
from pia.ipad.checks import Bound, check_bounds, check_choices
from pia.ipad.divergences import DIVERGENCES
from pia.ipad.losses import MAX_LOGITS, Objective

_CHOICES = {
    "optimizer": ("adamw", "muon"),
    "divergence": tuple(DIVERGENCES),
    "recovery": ("full", "lora"),
    "teacher": ("online", "cache"),
    "precision": ("auto", "float32", "bfloat16"),
}
_POSITIVE: Bound = (lambda x: x > 0, "it must be a number above 0")
_NOT_NEGATIVE: Bound = (lambda x: x >= 0, "it must be 0 or more")
_WHOLE: Bound = (lambda x: isinstance(x, int) and x >= 1, "it must be a whole number from 1")
_BOUNDS: dict[str, Bound] = {
    "batch_tokens": _WHOLE,
    "micro_batch_tokens": _WHOLE,
    "max_length": (lambda x: isinstance(x, int) and x >= 2, "it must be a whole number from 2"),
    "prompt_weight": (lambda x: 0 <= x <= 1, "it must be a number from 0 to 1"),
    "learning_rate": _POSITIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "grad_clip": _POSITIVE,
    "jsd_beta": (lambda x: 0 < x < 1, "it must be a number between 0 and 1"),
    "temperature": _POSITIVE,
    "lm_weight": (lambda x: 0 <= x <= 1, "it must be a number from 0 to 1"),
    "hidden_weight": _NOT_NEGATIVE,
    "lora_rank": _WHOLE,
    "top_k": _WHOLE,
    "checkpoint_every": _WHOLE,
    "max_logits": _WHOLE,
}


@dataclass(frozen=True)
class DistillConfig:
    """Settings of distillation; every stage of a run has the same ones.

    Raises:
        ShrinkError: a setting is out of its range, or does not go with another one.
    """

    batch_tokens: int = 8192
    """Most tokens of a step, padding counted."""
    micro_batch_tokens: int | None = None
    """Most tokens of a forward; gradients add up to those of the whole batch. All of the batch when None."""
    max_length: int = 512
    """Tokens of the longest row."""
    prompt_weight: float = 0.2
    """How much tokens count that are given rather than learnt."""
    learning_rate: float = 1e-3
    """The highest one."""
    optimizer: str = "adamw"
    """"adamw", or "muon" for the matrices of the layers (each matrix of a stack of experts) with AdamW for the rest."""
    warmup_steps: int = 10
    """Until the learning rate is reached, where an optimizer begins anew: later rounds take its moments over."""
    weight_decay: float = 0.0
    """Of matrices: share of the learning rate by which a step makes them smaller."""
    grad_clip: float = 1.0
    """Most that the norm of all gradients may be."""
    divergence: str = "forward_kl"
    """"forward_kl", "reverse_kl" or "jsd"."""
    jsd_beta: float = 0.5
    """Of "jsd": towards 0 it is like the forward KL, towards 1 like the reverse one."""
    temperature: float = 1.0
    lm_weight: float = 0.1
    """Share of the language modelling loss; the rest is the divergence. With 1 the teacher is never asked."""
    hidden_weight: float = 0.0
    """Of 1 - cosine between the final hidden states of student and teacher, added to the rest."""
    recovery: str = "full"
    """"full", or "lora": adapters are trained and merged at the end of a stage. Experts and routers get none: they stay
    as the cut left them, so prefer "full" where experts were cut."""
    lora_rank: int = 32
    """Of adapters."""
    teacher: str = "online"
    """"online", or "cache": the `top_k` likeliest tokens are written to disk once."""
    top_k: int = 64
    """Of a cached teacher: 4 bytes for each token, 6 where the vocabulary has more than 65,536."""
    precision: str = "auto"
    """Of matrix products: "auto" (bfloat16 where it is fast), "float32" or "bfloat16". Weights are float32."""
    attn_implementation: str | None = None
    """Of student and teacher while training, such as "eager" or "sdpa"; as the models have it when None."""
    checkpoint_every: int = 50
    """Steps."""
    max_logits: int = MAX_LOGITS
    """Elements of logits that are alive at once."""

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_bounds(self, _BOUNDS, optional=("micro_batch_tokens",))
        if self.recovery == "lora" and self.optimizer != "adamw":
            raise ShrinkError("adapters are no maps of their own to make orthogonal: set optimizer to adamw")
        if self.hidden_weight and self.teacher == "cache":
            raise ShrinkError("a cached teacher has no hidden states: set hidden_weight to 0, or teacher to online")

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective(self.divergence, self.jsd_beta, self.temperature, self.lm_weight)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has any say."""
        return self.lm_weight < 1 or self.hidden_weight > 0
