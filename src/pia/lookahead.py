"""The face for Transformers: an object for `generate(custom_generate=...)` that holds the draft cache between calls."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from pia.config import LookaheadConfig
from pia.decoding.chooser import TokenChooser
from pia.decoding.loop import Drafter, decode_steps
from pia.decoding.request import Request, Stopping
from pia.decoding.stats import Stats, Step
from pia.drafting.budget import BudgetPolicy, Calibrator, CostCurve
from pia.drafting.cache import DraftCache
from pia.drafting.fingerprint import tokenizer_fingerprint, tokenizer_vocab_size
from pia.drafting.source import DraftSession, NoDrafts
from pia.errors import CacheMismatchError, UnsupportedOptionError
from pia.generate_call import GenerateCall, caller_argument, vocab_size
from pia.models.capability import Capability, Mode
from pia.models.exact import ExactRunner
from pia.models.exact_cache import ExactCache
from pia.models.exact_support import exact_sizes
from pia.models.kv import SlabCache
from pia.models.profile import capability_of, curve_of, exact_curve_of, exact_sizes_of
from pia.models.runner import Runner, SlabRunner, StockRunner
from pia.prediction import NO_PREDICTION, Prediction, prediction_ids
from pia.recording import TraceRecorder, model_name, record_rows, recorded
from pia.seed_options import from_decoding_kwargs

logger = logging.getLogger("pia")

_UNUSED = "the predicted output goes unused"


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
        recorder: finished requests are appended there, to be replayed (`pia replay`).
        **options: see `LookaheadConfig`. `corpora` may also be a dictionary of files by name, which are attached to the
            cache.

    Raises:
        UnsupportedOptionError: an option is unknown or out of range.
    """

    def __init__(
        self, cache: DraftCache | None = None, *, recorder: TraceRecorder | None = None, **options: Any
    ) -> None:
        self.config = LookaheadConfig.of(**options)
        self.cache = DraftCache() if cache is None else cache
        self.recorder = recorder
        if isinstance(corpora := options.get("corpora"), Mapping):
            for name, corpus in corpora.items():
                self.cache.attach(name, corpus)
        self.last_stats: Stats | None = None
        """Statistics of the call that was started last."""
        self._calibrators: weakref.WeakKeyDictionary[Any, Calibrator] = weakref.WeakKeyDictionary()
        self._bound: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._warned: set[str] = set()

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        decoding_kwargs: dict[str, Any] | None = None,
        predicted_output_ids: Prediction | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Decodes one prepared call of `generate`; Transformers calls this.

        `predicted_output_ids`, `[n]` or `[1, n]`, is what the caller expects the output to be, more or less.
        """
        config = from_decoding_kwargs(self.config, decoding_kwargs)
        streamer = caller_argument("streamer")
        call = GenerateCall(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        if config is not None and config.exact and call.num_rows > 1:
            raise UnsupportedOptionError(f"exact=True decodes one row at a time, and this call has {call.num_rows}")
        if config is None or call.num_rows > 1:
            reason = "use_lookahead is off" if config is None else f"a batch of {call.num_rows} rows"
            if config is not None and predicted_output_ids is not None:
                reason += f"; {_UNUSED}"
            return self._sample_plainly(call, streamer, reason)
        predicted = prediction_ids(predicted_output_ids, name="predicted_output_ids", vocab_size=vocab_size(call.model))
        decoding = self.start(call, config, predicted_ids=predicted)
        with closing(decoding.steps) as steps:
            for step in steps:
                for token_id in step.token_ids if streamer is not None else ():
                    streamer.put(torch.tensor([token_id]))
        if streamer is not None:
            streamer.end()
        return _output(call, decoding)

    def start(
        self,
        call: GenerateCall,
        config: LookaheadConfig | None = None,
        *,
        predicted_ids: npt.NDArray[np.int32] = NO_PREDICTION,
    ) -> Decoding:
        """Opens a request for a prepared call. Its prompt is fed when the first step is asked for.

        Args:
            call: what to decode.
            config: options of this call; those of the object by default.
            predicted_ids: token ids that the output is expected to be, `[n]`.

        Raises:
            UnsupportedOptionError: the call has more than one row.
            CacheMismatchError: the draft cache belongs to another tokenizer.
        """
        config = config or self.config
        if call.num_rows > 1:
            raise UnsupportedOptionError(
                f"steps are of one request, and this call has {call.num_rows} rows; start one for each"
            )
        capability, curve = self._examine(call, config)
        runner = _new_runner(call, capability, config)
        request = call.new_request(strip_padding=runner.can_draft)
        chooser = call.new_chooser()
        policy = self._new_policy(call.model, curve, config)
        if len(predicted_ids):
            policy.expect_much()
        drafter = self._new_drafter(call, request, capability, policy, config, predicted_ids)
        reason = _reason(capability, curve, config)
        if len(predicted_ids) and not capability.can_verify_chains:
            reason += f"; {_UNUSED}"
        stats = self.last_stats = Stats(mode=capability.mode.label, reason=reason)
        steps = _counted(decode_steps(runner, request, chooser, drafter), stats)
        return Decoding(request, chooser, runner, stats, recorded(steps, request, self.recorder, **self._facts(call)))

    def bind(self, tokenizer: Any) -> None:
        """Ties the draft cache to a tokenizer, or checks that it is tied to this one.

        Raises:
            CacheMismatchError: the cache holds texts of another tokenizer.
        """
        if self._bound.get(tokenizer) == len(tokenizer):  # a fingerprint takes its time, and every request asks
            return
        self.cache.bind(tokenizer_vocab_size(tokenizer), tokenizer_fingerprint(tokenizer))
        self._bound[tokenizer] = len(tokenizer)

    def warm(self, tokenizer: Any, texts: Iterable[str]) -> int:
        """Learns texts, such as earlier answers, each ended by the tokenizer's EOS.

        Returns:
            the number of tokens learned.
        """
        if isinstance(texts, str):
            raise UnsupportedOptionError("warm takes a list of texts, and got one text; put it in a list")
        self.bind(tokenizer)
        ending = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        num_tokens = 0
        for text in texts:
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *ending]
            self.cache.insert(ids, stop_ids=frozenset(ending), namespace=self.config.namespace)
            num_tokens += len(ids)
        return num_tokens

    def _facts(self, call: GenerateCall) -> dict[str, Any]:
        """What a recording says of where a request comes from; nothing without one."""
        if self.recorder is None:
            return {}
        return {"model": model_name(call.model), "tokenizer": self.cache.tokenizer_fingerprint}

    def _examine(self, call: GenerateCall, config: LookaheadConfig) -> tuple[Capability, CostCurve | None]:
        """What the model can verify in this call, and what that costs if it matters."""
        if config.exact:
            return self._examine_exactly(call, config)
        capability = capability_of(call.model, self_check=config.self_check and config.budget != 0)
        reason = call.plain_reason() if capability.can_verify_chains else None
        if reason is not None:
            self._warn_once(f"PIA decodes plainly: {reason}")
            capability = Capability(Mode.PLAIN, reason)
        needs_curve = config.budget == "auto" and capability.can_verify_chains
        return capability, curve_of(call.model, can_branch=capability.can_verify_trees) if needs_curve else None

    def _examine_exactly(self, call: GenerateCall, config: LookaheadConfig) -> tuple[Capability, CostCurve | None]:
        """The same with `exact=True`, or the refusal. Drafts or none, the answer is the same: so must be the bits."""
        capability = capability_of(call.model, self_check=config.self_check)
        sizes = exact_sizes(call.model, capability, call.plain_reason())
        reason = f"exact: forwards of {', '.join(map(str, sizes))} tokens give the same bits"
        capability = Capability(Mode.CHAIN, reason)
        return capability, exact_curve_of(call.model) if config.budget == "auto" else None

    def _new_policy(self, model: Any, curve: CostCurve | None, config: LookaheadConfig) -> BudgetPolicy:
        """The budget of one request; an automatic one goes on from what earlier requests showed."""
        if config.budget == "auto" and curve is not None:
            calibrator = self._calibrators.setdefault(model, Calibrator())
            return BudgetPolicy(curve, max_nodes=config.max_budget, calibrator=calibrator)
        fixed = 0 if config.budget == "auto" else config.budget
        return BudgetPolicy(None, max_nodes=fixed, fixed=fixed)

    def _new_drafter(
        self,
        call: GenerateCall,
        request: Request,
        capability: Capability,
        policy: BudgetPolicy,
        config: LookaheadConfig,
        predicted_ids: npt.NDArray[np.int32],
    ) -> Drafter:
        can_draft = capability.can_verify_chains and config.budget != 0
        return Drafter(
            self._begin(call, request, config, predicted_ids) if can_draft else NoDrafts(),
            policy,
            max_depth=config.max_depth,
            shape=config.shape if capability.can_verify_trees else "chain",
            max_length=context_length(call.model),
            vocab_size=vocab_size(call.model),
        )

    def _begin(
        self, call: GenerateCall, request: Request, config: LookaheadConfig, predicted_ids: npt.NDArray[np.int32]
    ) -> DraftSession:
        known, size = self.cache.vocab_size, vocab_size(call.model)
        if known is not None and known > size:
            raise CacheMismatchError(
                f"the draft cache knows {known} token ids and this model only {size}: it belongs to another tokenizer; "
                "use a cache of its own for each tokenizer"
            )
        prompt = request.prompt_ids[0].cpu().numpy().astype(np.int32)
        if known is not None and known <= int(prompt.max()):
            self._warn_once(
                f"PIA does not draft: the prompt holds token id {prompt.max()}, the draft cache knows {known}"
            )
            return NoDrafts()
        if known is not None and len(predicted_ids) and known <= int(predicted_ids.max()):
            self._warn_once(
                f"PIA leaves the predicted output unused: it holds token id {predicted_ids.max()}, "
                f"the draft cache knows {known}"
            )
            predicted_ids = NO_PREDICTION
        extra: dict[str, Any] = {"predicted_ids": predicted_ids} if len(predicted_ids) else {}
        return self.cache.begin(
            prompt,
            stop_ids=request.stopping.eos_ids,
            namespace=config.namespace,
            corpora=config.corpora,
            **extra,
        )

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
        if self.recorder is not None:
            sequences = output if isinstance(output, torch.Tensor) else output["sequences"]
            mask, stop_ids = call.model_kwargs.get("attention_mask"), Stopping(call.stopping_criteria).eos_ids
            record_rows(self.recorder, call.input_ids, mask, sequences, stop_ids, **self._facts(call))
        return (
            output if isinstance(output, torch.Tensor) else LookaheadOutput(**output, stats=stats, kwargs=stats.kwargs)
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def __deepcopy__(self, memo: dict[int, Any]) -> Lookahead:
        """A copy of an accelerated model shares the draft cache."""
        return self

    def __repr__(self) -> str:
        return f"Lookahead({self.cache!r}, budget={self.config.budget!r}, max_depth={self.config.max_depth})"


def context_length(model: Any) -> int | None:
    """Most tokens the model is made for, as its configuration says; `None` when it does not."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _new_runner(call: GenerateCall, capability: Capability, config: LookaheadConfig) -> Runner:
    if not capability.can_verify_chains:
        return StockRunner(call.model, call.config, call.model_kwargs)
    if config.exact:
        sizes = partial(exact_sizes_of, call.model)
        return ExactRunner(call.model, sizes, prefill_chunk_size=call.config.prefill_chunk_size)
    largest_tree = config.max_budget if config.budget == "auto" else config.budget
    max_length = call.stopping_criteria.max_length
    return SlabRunner(
        call.model,
        can_branch=capability.can_verify_trees,
        max_length=None if max_length is None else max_length + largest_tree,
        prefill_chunk_size=call.config.prefill_chunk_size,
    )


def _reason(capability: Capability, curve: CostCurve | None, config: LookaheadConfig) -> str:
    if not capability.can_verify_chains:
        return capability.reason
    budget = f"budget by measured cost: {curve!r}" if curve else f"budget fixed at {config.budget}"
    return f"{capability.reason}; {budget}"


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
    cache = decoding.runner.cache
    return LookaheadOutput(
        sequences=sequences,
        scores=cast(Any, decoding.chooser.scores),
        logits=cast(Any, decoding.chooser.logits),
        past_key_values=cache.as_dynamic() if isinstance(cache, (SlabCache, ExactCache)) else cache,
        stats=decoding.stats,
        kwargs=decoding.stats.kwargs,
    )
