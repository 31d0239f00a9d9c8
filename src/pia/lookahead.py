"""The face for Transformers: an object for `generate(custom_generate=...)` that holds the draft cache between calls."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from pia.config import LookaheadConfig
from pia.decoding.chooser import TokenChooser
from pia.decoding.loop import Drafter, decode_steps
from pia.decoding.request import Request
from pia.decoding.stats import Stats, Step
from pia.drafting.budget import BudgetPolicy
from pia.drafting.cache import DraftCache
from pia.drafting.fingerprint import tokenizer_fingerprint
from pia.drafting.source import DraftSession, NoDrafts
from pia.errors import CacheMismatchError, UnsupportedOptionError
from pia.generate_call import GenerateCall, caller_argument, vocab_size
from pia.models.capability import Capability, Mode, declared_capability
from pia.models.profile import ModelProfile, ModelProfiles
from pia.models.runner import Runner, SlabRunner, StockRunner
from pia.seed_options import from_decoding_kwargs

logger = logging.getLogger("pia")


@dataclass
class LookaheadOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """Transformers' output with PIA's statistics; `kwargs` holds the seed's `edls`, `dls`, `fts` and `qts`."""

    stats: Stats | None = None
    kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Decoding:
    """One request under way: iterate over `steps`; `stats` fills as they come."""

    request: Request
    chooser: TokenChooser
    runner: Runner
    stats: Stats
    steps: Generator[Step, None, None]


class Lookahead:
    """Lossless acceleration by drafts from a cache, verified as a token tree (arXiv 2312.12728).

    Pass it to `model.generate(..., custom_generate=lookahead)`. One object may serve many calls, models of one
    tokenizer, and threads at once; what is generated is learned by its cache.

    Args:
        cache: drafts come from here; a new one by default.
        **options: see `LookaheadConfig`.

    Raises:
        UnsupportedOptionError: an option is unknown or out of range.
    """

    def __init__(self, cache: DraftCache | None = None, **options: Any) -> None:
        self.config = LookaheadConfig.of(**options)
        self.cache = DraftCache() if cache is None else cache
        self.last_stats: Stats | None = None
        """Statistics of the call that was started last."""
        self._profiles = ModelProfiles()
        self._warned: set[str] = set()

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        decoding_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Decodes one prepared call of `generate`; Transformers calls this."""
        config = from_decoding_kwargs(self.config, decoding_kwargs)
        streamer = caller_argument("streamer")
        call = GenerateCall(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        if config is None or call.num_rows > 1:
            reason = "use_lookahead is off" if config is None else f"a batch of {call.num_rows} rows"
            return self._sample_plainly(call, streamer, reason)
        decoding = self.start(call, config)
        for step in decoding.steps:
            for token_id in step.token_ids if streamer is not None else ():
                streamer.put(torch.tensor([token_id]))
        if streamer is not None:
            streamer.end()
        return _output(call, decoding)

    def start(self, call: GenerateCall, config: LookaheadConfig | None = None) -> Decoding:
        """Opens a request for a prepared call. Its prompt is fed when the first step is asked for.

        Raises:
            UnsupportedOptionError: the call has more than one row.
            CacheMismatchError: the draft cache belongs to another tokenizer.
        """
        config = config or self.config
        if call.num_rows > 1:
            raise UnsupportedOptionError(
                f"steps are of one request, and this call has {call.num_rows} rows; start one for each"
            )
        profile = self._profile(call, config)
        runner = _new_runner(call, profile.capability, config)
        request = call.new_request(strip_padding=runner.can_draft)
        chooser = call.new_chooser()
        drafter = self._new_drafter(call, request, profile, config)
        stats = self.last_stats = Stats(mode=profile.capability.mode.label, reason=_reason(profile, config))
        return Decoding(
            request, chooser, runner, stats, _counted(decode_steps(runner, request, chooser, drafter), stats)
        )

    def bind(self, tokenizer: Any) -> None:
        """Ties the draft cache to a tokenizer, or checks that it is tied to this one.

        Raises:
            CacheMismatchError: the cache holds texts of another tokenizer.
        """
        self.cache.bind(len(tokenizer), tokenizer_fingerprint(tokenizer))

    def warm(self, tokenizer: Any, texts: Iterable[str]) -> int:
        """Learns texts, such as earlier answers, each ended by the tokenizer's EOS.

        Returns:
            the number of tokens learned.
        """
        self.bind(tokenizer)
        ending = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        num_tokens = 0
        for text in texts:
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *ending]
            self.cache.insert(ids, stop_ids=frozenset(ending), namespace=self.config.namespace)
            num_tokens += len(ids)
        return num_tokens

    def _profile(self, call: GenerateCall, config: LookaheadConfig) -> ModelProfile:
        """What the model can do in this call, and what that costs."""
        reason = call.plain_reason() if declared_capability(call.model).can_verify_chains else None
        if reason is not None:
            self._warn_once(f"PIA decodes plainly: {reason}")
            return ModelProfile(Capability(Mode.PLAIN, reason), None)
        max_nodes = config.max_budget if config.budget == "auto" else None
        return self._profiles.of(call.model, self_check=config.self_check and config.budget != 0, max_nodes=max_nodes)

    def _new_drafter(
        self, call: GenerateCall, request: Request, profile: ModelProfile, config: LookaheadConfig
    ) -> Drafter:
        can_draft = profile.capability.can_verify_chains and config.budget != 0
        return Drafter(
            self._begin(call, request, config) if can_draft else NoDrafts(),
            _new_policy(profile, config),
            max_depth=config.max_depth,
            shape=config.shape if profile.capability.can_verify_trees else "chain",
            can_draft=can_draft,
            max_length=context_length(call.model),
            vocab_size=self.cache.vocab_size,
        )

    def _begin(self, call: GenerateCall, request: Request, config: LookaheadConfig) -> DraftSession:
        prompt = request.prompt_ids[0].cpu().numpy().astype(np.int32)
        known, size, highest = self.cache.vocab_size, vocab_size(call.model), int(prompt.max())
        if known is not None and (known > size or known <= highest):
            raise CacheMismatchError(
                f"the draft cache knows {known} token ids, this model {size}, and the prompt goes up to id {highest}: "
                "the cache belongs to another tokenizer; use a cache of its own for each tokenizer"
            )
        return self.cache.begin(prompt, stop_ids=request.stopping.eos_ids, namespace=config.namespace)

    def _sample_plainly(self, call: GenerateCall, streamer: Any, reason: str) -> Any:
        """Leaves the call to Transformers' own loop."""
        self._warn_once(f"PIA leaves the call to Transformers: {reason}")
        stats = self.last_stats = Stats(mode="plain", reason=reason)
        output = call.model._sample(
            call.input_ids,
            call.logits_processor,
            call.stopping_criteria,
            call.config,
            streamer=streamer,
            **call.model_kwargs,
        )
        return (
            output if isinstance(output, torch.Tensor) else LookaheadOutput(**output, stats=stats, kwargs=stats.kwargs)
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def __repr__(self) -> str:
        return f"Lookahead({self.cache!r}, budget={self.config.budget!r}, max_depth={self.config.max_depth})"


def context_length(model: Any) -> int | None:
    """Most tokens the model is made for, as its configuration says; `None` when it does not."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _new_runner(call: GenerateCall, capability: Capability, config: LookaheadConfig) -> Runner:
    if not capability.can_verify_chains:
        return StockRunner(call.model, call.config, call.model_kwargs)
    largest_tree = config.max_budget if config.budget == "auto" else config.budget
    max_length = call.stopping_criteria.max_length
    return SlabRunner(
        call.model,
        can_branch=capability.can_verify_trees,
        max_length=None if max_length is None else max_length + largest_tree,
        prefill_chunk_size=call.config.prefill_chunk_size,
    )


def _new_policy(profile: ModelProfile, config: LookaheadConfig) -> BudgetPolicy:
    """The budget of one request; an automatic one goes on from what earlier requests showed."""
    if config.budget == "auto" and profile.curve is not None:
        return BudgetPolicy(profile.curve, max_nodes=config.max_budget, calibrator=profile.calibrator)
    fixed = 0 if config.budget == "auto" else config.budget
    return BudgetPolicy(None, max_nodes=fixed, fixed=fixed)


def _reason(profile: ModelProfile, config: LookaheadConfig) -> str:
    if not profile.capability.can_verify_chains:
        return profile.capability.reason
    if config.budget == "auto":
        budget = f"budget by measured cost: {profile.curve!r}" if profile.curve else "no budget"
    else:
        budget = f"budget fixed at {config.budget}"
    return f"{profile.capability.reason}; {budget}"


def _counted(steps: Generator[Step, None, None], stats: Stats) -> Generator[Step, None, None]:
    """Passes steps on, counting them."""
    with closing(steps):
        for step in steps:
            stats.add(step)
            yield step


def _output(call: GenerateCall, decoding: Decoding) -> Any:
    """What `generate` returns: token ids, or `LookaheadOutput`."""
    sequences: Any = decoding.request.input_ids.clone()
    if not call.config.return_dict_in_generate:
        return sequences
    return LookaheadOutput(
        sequences=sequences,
        scores=cast(Any, decoding.chooser.scores),
        logits=cast(Any, decoding.chooser.logits),
        past_key_values=decoding.runner.cache,
        stats=decoding.stats,
        kwargs=decoding.stats.kwargs,
    )
