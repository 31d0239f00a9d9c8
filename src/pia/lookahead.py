"""The face for Transformers: an object for `generate(custom_generate=...)` that holds the draft cache between calls."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pia._core import NgramPool
from pia.config import LookaheadConfig
from pia.decoding.drafter import Drafter
from pia.decoding.loop import Row, decode_steps
from pia.decoding.request import Request, Stopping
from pia.decoding.stats import Stats, Step
from pia.drafting.budget import BudgetPolicy, Calibrator
from pia.drafting.cache import DraftCache
from pia.drafting.fingerprint import tokenizer_fingerprint, tokenizer_vocab_size
from pia.drafting.guesses import GuessAcceptance
from pia.drafting.jacobi import JacobiSource, new_pool
from pia.drafting.source import DraftSession, NoDrafts
from pia.drafting.window_policy import WindowPolicy, WindowWorth
from pia.errors import CacheMismatchError, RowsInStepError, UnsupportedOptionError
from pia.generate_call import GenerateCall, caller_argument, row_generators, vocab_size
from pia.models.own_prompt import OwnPromptRunner
from pia.models.runner import Runner
from pia.models.static.captured import GraphRunner
from pia.output import Decoding, LookaheadOutput, output_of
from pia.plan import Plan
from pia.prediction import NO_PREDICTION, Prediction, prediction_rows
from pia.recording import TraceRecorder, model_name, record_rows, recorded
from pia.seed_options import from_decoding_kwargs

logger = logging.getLogger("pia")

_UNUSED = "the predicted output goes unused"


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
        self._worths: weakref.WeakKeyDictionary[Any, WindowWorth] = weakref.WeakKeyDictionary()
        self._guess_acceptance = GuessAcceptance()
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
        predicted_output_ids: Prediction | Sequence[Prediction | None] | None = None,
        seeds: Sequence[int] | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Decodes one prepared call of `generate`; Transformers calls this.

        `decoding_kwargs` are the seed's options. `predicted_output_ids` is what the output is expected to be, more or
        less, `[n]` or `[1, n]`; for a batch one of them, or `None`, for each row.

        `seeds` are for sampling, one for each row: a row becomes what it would be alone after `torch.manual_seed` with
        its seed, whatever is beside it. Without them a single row draws from torch's own generator, as plain decoding
        does, and the rows of a batch from generators that are seeded by it.
        """
        config = from_decoding_kwargs(self.config, decoding_kwargs)
        streamer = caller_argument("streamer")
        call = GenerateCall(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        if config is None:
            return self._sample_plainly(call, streamer, "use_lookahead is off", seeds)
        predicted = prediction_rows(predicted_output_ids, call.num_rows, vocab_size=vocab_size(model))
        try:
            if call.num_rows > 1 and streamer is not None:
                raise RowsInStepError("a streamer takes the rows in step")
            decoding = self.start(call, config, predicted_ids=predicted, seeds=seeds)
        except RowsInStepError as error:
            unused = f"; {_UNUSED}" if any(map(len, predicted)) else ""
            return self._sample_plainly(call, streamer, f"a batch of {call.num_rows} rows: {error}{unused}", seeds)
        with closing(decoding.steps) as steps:
            for step in steps:
                for token_id in step.token_ids if streamer is not None else ():
                    streamer.put(torch.tensor([token_id]))
        if streamer is not None:
            streamer.end()
        return output_of(call, decoding)

    def start(
        self,
        call: GenerateCall,
        config: LookaheadConfig | None = None,
        *,
        predicted_ids: Sequence[npt.NDArray[np.int32]] = (),
        seeds: Sequence[int] | None = None,
    ) -> Decoding:
        """Opens the requests of a prepared call. Their prompts are fed when the first step is asked for.

        Args:
            call: what to decode.
            config: options of this call; those of the object by default.
            predicted_ids: token ids that each row's output is expected to be, `[n]` each.
            seeds: of each row's random draws.

        Raises:
            RowsInStepError: the rows of the call cannot be decoded apart.
            CacheMismatchError: the draft cache belongs to another tokenizer.
            UnsupportedOptionError: the seeds are not one for each row.
        """
        config = config or self.config
        predicted_ids = predicted_ids or [NO_PREDICTION] * call.num_rows
        plan = Plan.of(call, config)
        if plan.call_reason is not None:
            self._warn_once(f"PIA decodes plainly: {plan.call_reason}")
        if call.num_rows > 1 and not plan.capability.can_batch:
            raise RowsInStepError(plan.capability.reason)
        runner = plan.new_runner()
        policy = plan.new_policy(runner, self._calibrators.setdefault(call.model, Calibrator()))
        if any(map(len, predicted_ids)):
            policy.expect_much()
        requests = [call.new_request(row, strip_padding=runner.can_draft) for row in range(call.num_rows)]
        choosers = [call.new_chooser(row, generator) for row, generator in enumerate(row_generators(call, seeds))]
        sessions = [
            self._begin(plan, request, predicted) if plan.can_draft else NoDrafts()
            for request, predicted in zip(requests, predicted_ids, strict=True)
        ]
        drafters = [_new_drafter(plan, session) for session in sessions]
        num_told = 0 if self.recorder is None else self.recorder.top_k
        rows = list(map(Row, range(call.num_rows), requests, choosers, drafters, repeat(num_told)))
        is_unused = any(map(len, predicted_ids)) and not plan.capability.can_verify_chains
        reason = f"{plan.reason}; {_UNUSED}" if is_unused else plan.reason
        windows = plan.new_window_policy(self._worths.setdefault(call.model, WindowWorth()))
        return self._decoding(call, rows, runner, policy, windows, _new_stats(plan, reason))

    def _decoding(
        self,
        call: GenerateCall,
        rows: list[Row],
        runner: Runner,
        policy: BudgetPolicy,
        windows: WindowPolicy | None,
        stats: Stats,
    ) -> Decoding:
        """Ties rows, runner and statistics together."""
        self.last_stats = stats
        row_stats = [stats] if len(rows) == 1 else [stats.fresh() for _ in rows]
        by_length = sorted(rows, key=lambda row: row.request.prompt_ids.shape[1])  # neighbours are fed together
        steps = _counted(decode_steps(runner, by_length, policy, windows), stats, row_stats)
        requests = [row.request for row in rows]
        if isinstance(runner, OwnPromptRunner) and call.given_cache is not None:
            steps = _handing_back(steps, runner, call.given_cache, requests[0])
        if isinstance(runner, GraphRunner):
            steps = _releasing(steps, runner, keeps_cache=bool(call.config.return_dict_in_generate))
        steps = recorded(steps, requests, self.recorder, **self._facts(call))
        return Decoding(rows, runner, stats, row_stats, steps)

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

    def _begin(self, plan: Plan, request: Request, predicted_ids: npt.NDArray[np.int32]) -> DraftSession:
        """A row's session: the draft cache's, with a window around it if there is one, or the window's alone."""
        pool = None if plan.jacobi is None else new_pool(plan.jacobi)
        inner = self._begin_cached(plan, request, predicted_ids, pool) if plan.sources else None
        if plan.jacobi is None:
            return inner or NoDrafts()
        prompt = request.prompt_ids[0].cpu().numpy().astype(np.int32)
        return JacobiSource(plan.jacobi, self._guess_acceptance).begin(prompt, pool=pool, inner=inner)

    def _begin_cached(
        self,
        plan: Plan,
        request: Request,
        predicted_ids: npt.NDArray[np.int32],
        pool: NgramPool | None,
    ) -> DraftSession:
        known, size = self.cache.vocab_size, vocab_size(plan.call.model)
        if known is not None and known > size:
            raise CacheMismatchError(
                f"the draft cache knows {known} token ids and this model only {size}: it belongs to another tokenizer; "
                "use a cache of its own for each tokenizer"
            )
        prompt = request.prompt_ids[0].cpu().numpy().astype(np.int32)
        if known is not None and known <= int(prompt.max(initial=0)):
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
        extra |= {"pool": pool} if pool is not None else {}
        return self.cache.begin(
            prompt,
            stop_ids=request.stopping.eos_ids,
            namespace=plan.config.namespace,
            corpora=plan.config.corpora,
            sources=plan.sources,
            **extra,
        )

    def _sample_plainly(
        self, call: GenerateCall, streamer: Any, reason: str, seeds: Sequence[int] | None = None
    ) -> Any:
        """Leaves the call to Transformers' own loop."""
        if seeds is not None:
            raise UnsupportedOptionError(
                f"seeds cannot be honoured here ({reason}), since Transformers draws for all rows from one stream; "
                "leave them out, or generate each row in a call of its own"
            )
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
            if self.recorder.top_k:
                self._warn_once(f"PIA records without likeliest tokens what Transformers decodes: {reason}")
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


def _counted(
    steps: Generator[Step, None, None], stats: Stats, row_stats: Sequence[Stats]
) -> Generator[Step, None, None]:
    """Passes steps on, counting them, for all rows and for each."""
    with closing(steps):
        for step in steps:
            stats.add(step)
            if row_stats[step.row] is not stats:
                row_stats[step.row].add(step)
            yield step


def _new_stats(plan: Plan, reason: str) -> Stats:
    """Statistics that say how a call is decoded."""
    return Stats(
        mode=plan.capability.mode.label,
        reason=reason,
        engine=plan.engine.name if plan.capability.can_verify_chains else "",
        engine_reason=plan.engine.reason if plan.capability.can_verify_chains else "",
    )


def _new_drafter(plan: Plan, session: DraftSession) -> Drafter:
    """A request's drafter within the limits of model and call."""
    capability, config = plan.capability, plan.config
    return Drafter(
        session,
        max_depth=config.max_depth,
        shape=config.shape if capability.can_verify_trees else "chain",
        max_length=plan.draftable_length,
        vocab_size=vocab_size(plan.call.model),
        depth_at=capability.positions.max_depth,
    )


def _releasing(
    steps: Generator[Step, None, None], runner: GraphRunner, *, keeps_cache: bool
) -> Generator[Step, None, None]:
    """Passes steps on; then others may have the captured steps, however the request ends.

    A cache that is still to be handed out keeps them until the runner is gone.
    """
    try:
        with closing(steps):
            yield from steps
    except BaseException:
        runner.lease.release()
        raise
    if not keeps_cache:
        runner.lease.release()


def _handing_back(
    steps: Generator[Step, None, None], runner: OwnPromptRunner, cache: Any, request: Request
) -> Generator[Step, None, None]:
    """Passes steps on; in the end the caller's cache holds the text."""
    try:
        with closing(steps):
            yield from steps
    finally:
        runner.hand_back(cache, len(request.output_ids))
