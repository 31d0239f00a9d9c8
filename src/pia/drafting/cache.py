"""The draft cache: what earlier outputs and the request itself say about what comes next."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pia import _core
from pia.drafting.session import DraftSession
from pia.drafting.token_ids import TokenSequence, as_token_ids
from pia.errors import CacheMismatchError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from pia.drafting.attached import AttachedCorpora
    from pia.drafting.corpus import Corpus

DEFAULT_MAX_BYTES = 1 << 30

MAX_REQUEST_ID = 256
"""Bytes that a request id may have (as UTF-8)."""


class LearnedSequences(NamedTuple):
    """What a namespace has learned, oldest sequence first."""

    tokens: npt.NDArray[np.int32]
    """All tokens in a row, [num_tokens]."""
    lengths: npt.NDArray[np.int32]
    """Tokens of each sequence, [num_sequences]."""
    owners: npt.NDArray[np.int32]
    """Which of `request_ids` each sequence comes from, or -1, [num_sequences]."""
    request_ids: list[str]


class DraftCache:
    """Learns token sequences and drafts their continuation.

    The cache counts, for contexts of the last 1, 2, 4 and 12 tokens and for three sparse ones that leave out the last
    one or two, which tokens followed. A mixing model that learns online weighs these counts into probabilities. The
    cache is shared by all requests; each request also drafts from its own prompt and output, which leave no text here
    unless it ends with `commit=True`.

    All methods may be called from any number of threads; native work runs without the GIL. Namespaces are kept apart
    entirely: what one learned never drafts for another.

    What was learned can be forgotten, by request id or by its text. Everything the cache drafts from is owed to
    sequences that it remembers; when memory for these is spent, the oldest are forgotten. As long as no contexts had to
    be evicted, forgetting is exact: context by context, the cache becomes the one that never learned them. (But for
    contexts of more than 255 different continuations, which keep the most frequent.) After evictions others' counts may
    suffer, but nothing is left of what was forgotten, either way. What was recycled of the model's logits (see `begin`)
    is kept by namespace alone: any `forget` or `clear` drops all of it.

    Args:
        max_bytes: Bound of the shared memory. Beyond it the least useful contexts are evicted.
        vocab_size: Number of token ids; None until `bind` or the user says.
        tokenizer_fingerprint: See `pia.drafting.fingerprint`; None until known.

    Raises:
        ValueError: If `max_bytes` is below 64 KiB.
    """

    def __init__(
        self,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        vocab_size: int | None = None,
        tokenizer_fingerprint: str | None = None,
    ) -> None:
        self._core = _core.Cache.create(max(int(max_bytes), 0))
        self._fingerprint: str | None = None
        self._corpora = _no_corpora()
        self.bind(vocab_size, tokenizer_fingerprint)

    # --- Drafting and learning ---------------------------------------------------------------------------------------

    def begin(
        self,
        prompt_ids: TokenSequence,
        *,
        stop_ids: AbstractSet[int] = frozenset(),
        namespace: str = "",
        request_id: str | None = None,
        predicted_ids: TokenSequence = (),
        corpora: Iterable[str] = (),
        sources: Collection[str] = ("cache",),
        pool: _core.NgramPool | None = None,
    ) -> DraftSession:
        """Starts drafting for one request.

        A prompt of more than some thousand tokens is read in the background: the session drafts at once, and knows the
        whole prompt after some milliseconds.

        Args:
            prompt_ids: The whole prompt, [num_prompt]. Stop ids inside it are ordinary tokens.
            stop_ids: Ids that end a sequence in the output; no context reaches across one.
            namespace: Whose shared contexts to use and to teach.
            predicted_ids: What the caller expects the output to be, more or less: an edited file, a template, the
                previous answer. Drafts follow it, and find their way back where the output departs from it.
            request_id: By which what this request teaches can be forgotten. Several may share one.
            corpora: Names of the attached corpora to draft from as well.
            sources: "cache" drafts from the texts of this request and of others; "recycled" from what the model found
                likely before, of which `DraftSession.recycle` has to be told.
            pool: N-grams of a lookahead window, to draft from as well; whoever fills it does so between two calls.

        Raises:
            ValueError: If a token id lies outside the vocabulary, the request id is empty or too long, or no corpus of
                such a name is attached.
        """
        chosen = self._corpora.select(corpora) if corpora else []
        prompt, predicted = as_token_ids(prompt_ids), as_token_ids(predicted_ids)
        request = _checked_request_id(request_id)
        reads_counts, recycles = "cache" in sources, "recycled" in sources
        core = self._core.begin(
            prompt, list(stop_ids), namespace, request, predicted, chosen, reads_counts, recycles, pool
        )
        return DraftSession(core, recycles=recycles)

    def insert(
        self,
        token_ids: TokenSequence,
        *,
        stop_ids: AbstractSet[int] = frozenset(),
        namespace: str = "",
        request_id: str | None = None,
    ) -> None:
        """Learns one finished sequence, [n], as if a request had produced it.

        A stop id ends a learned sequence: it can be drafted itself, but what follows it starts afresh.

        Raises:
            ValueError: If a token id lies outside the vocabulary, or the request id is empty or too long.
        """
        request = _checked_request_id(request_id)
        self._core.learn(as_token_ids(token_ids), list(stop_ids), namespace, request)

    def forget(self, request_id: str, *, namespace: str = "") -> int:
        """Takes back all that a request has taught a namespace.

        What a running session has emitted is not learned yet: end it with `commit=False`.

        Returns:
            Number of tokens forgotten; 0 if nothing is known of the request.
        """
        return self._core.forget(_checked_request_id(request_id), namespace)

    def forget_sequence(
        self, token_ids: TokenSequence, *, stop_ids: AbstractSet[int] = frozenset(), namespace: str = ""
    ) -> int:
        """Takes back one `insert` of the same arguments, the latest if there were several; looks through the whole log.

        Returns:
            Number of tokens forgotten; 0 if the sequence is not remembered.
        """
        return self._core.forget_text(as_token_ids(token_ids), list(stop_ids), namespace)

    def clear(self, namespace: str | None = None) -> None:
        """Forgets everything a namespace has learned; without one, everything."""
        if namespace is None:
            self._core.clear_all()
        else:
            self._core.clear(namespace)

    def merge(self, other: DraftCache) -> None:
        """Learns everything that `other` holds, namespace by namespace.

        Raises:
            CacheMismatchError: If the two belong to different tokenizers.
        """
        self.bind(other.vocab_size, other.tokenizer_fingerprint)
        for namespace in other.namespaces:
            self.import_log(other.export_log(namespace), namespace=namespace)

    # --- Corpora -----------------------------------------------------------------------------------------------------

    def attach(self, name: str, corpus: Corpus | str | os.PathLike[str]) -> None:
        """Makes a corpus known by a name, for `begin`. It takes the place of one attached by that name before.

        Args:
            name: For `begin(..., corpora=[name])`.
            corpus: One that is open, or its file.

        Raises:
            CacheFileError: If the file is missing or damaged.
            CacheMismatchError: If the corpus belongs to another tokenizer.
        """
        self._corpora.attach(name, corpus, self)

    def detach(self, name: str) -> None:
        """Forgets a corpus. Requests under way draft from it until they end.

        Raises:
            ValueError: If no corpus of that name is attached.
        """
        self._corpora.detach(name)

    @property
    def corpora(self) -> list[str]:
        """Names of the attached corpora, sorted."""
        return self._corpora.names

    # --- Files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the cache to a file, replacing an old one only once the new one is complete.

        Raises:
            CacheFileError: If the file can't be written; an old file is left as it was.
        """
        from pia.drafting import cache_file

        cache_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> DraftCache:
        """Reads a cache that `save` wrote; it drafts as it did then.

        Raises:
            CacheFileError: If the file is missing, damaged, not a draft cache, or of a newer format.
        """
        from pia.drafting import cache_file

        return cache_file.load(path, max_bytes=max_bytes)

    def export_log(self, namespace: str = "") -> LearnedSequences:
        """The learned sequences and whose they are."""
        *arrays, request_ids = self._core.sequences(namespace)
        tokens, lengths, owners = (np.frombuffer(array, np.int32) for array in arrays)
        return LearnedSequences(tokens, lengths, owners, request_ids)

    def import_log(self, log: LearnedSequences, *, namespace: str = "") -> None:
        """Learns what `export_log` returned.

        Raises:
            ValueError: If ids lie outside the vocabulary, the lengths do not add up to the tokens, or an owner is
                unknown.
        """
        request_ids = [_checked_request_id(request_id) for request_id in log.request_ids]
        arrays = (as_token_ids(log.tokens), as_token_ids(log.lengths), np.ascontiguousarray(log.owners, np.int32))
        self._core.learn_many(*arrays, request_ids, namespace)

    def export_sequences(self, namespace: str = "") -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The learned sequences, oldest first: all tokens in a row, int32 [n], and each one's length, int32 [m]."""
        log = self.export_log(namespace)
        return log.tokens, log.lengths

    def import_sequences(
        self, tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], *, namespace: str = ""
    ) -> None:
        """Learns what `export_sequences` returned.

        Raises:
            ValueError: If ids lie outside the vocabulary or the lengths do not add up to the tokens.
        """
        self.import_log(LearnedSequences(tokens, lengths, np.empty(0, np.int32), []), namespace=namespace)

    # --- What it belongs to ------------------------------------------------------------------------------------------

    def bind(self, vocab_size: int | None = None, fingerprint: str | None = None) -> None:
        """Ties the cache to a tokenizer: sets what is not known yet, checks what is.

        Args:
            vocab_size: Number of token ids of the model.
            fingerprint: `tokenizer_fingerprint(tokenizer)`.

        Raises:
            CacheMismatchError: If the cache belongs to another vocabulary size or tokenizer.
            ValueError: If `vocab_size` is not positive.
        """
        if fingerprint is not None and self._fingerprint not in (None, fingerprint):
            raise CacheMismatchError(
                f"this draft cache was made with another tokenizer (fingerprint {self._fingerprint}, "
                f"not {fingerprint}); use a cache per tokenizer"
            )
        if vocab_size is not None:
            self._bind_vocab_size(vocab_size)
        if fingerprint is not None:
            self._fingerprint = fingerprint

    def _bind_vocab_size(self, vocab_size: int) -> None:
        if not 0 < vocab_size <= 1 << 31:
            raise ValueError(f"vocab_size must lie between 1 and 2147483648, not {vocab_size}")
        if self.vocab_size not in (None, vocab_size):
            raise CacheMismatchError(
                f"this draft cache is for a vocabulary of {self.vocab_size} tokens, not {vocab_size}; "
                "use a cache per tokenizer"
            )
        if self.vocab_size is None and (highest := self._highest_id()) >= vocab_size:
            raise CacheMismatchError(
                f"this draft cache has learned token id {highest}, which a vocabulary of {vocab_size} tokens does not "
                "have; use a cache per tokenizer"
            )
        self._core.vocab_size = vocab_size

    def _highest_id(self) -> int:
        texts = (self.export_sequences(namespace)[0] for namespace in self.namespaces)
        return max((int(tokens.max()) for tokens in texts if len(tokens)), default=-1)

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids, or None if not known yet."""
        return self._core.vocab_size or None

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Which tokenizer the token ids belong to, or None if not known yet."""
        return self._fingerprint

    # --- Figures -----------------------------------------------------------------------------------------------------

    @property
    def max_bytes(self) -> int:
        """Bound of the shared memory."""
        return self._core.max_bytes

    @property
    def memory_usage(self) -> int:
        """Bytes allocated for what is shared, slack included; never above `max_bytes`."""
        return self._core.num_bytes

    @property
    def request_memory_usage(self) -> int:
        """Bytes allocated for the own text and contexts of all running requests; freed as they end."""
        return self._core.num_request_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens learned and still remembered."""
        return self._core.num_tokens

    @property
    def num_contexts(self) -> int:
        """Distinct contexts of all shapes."""
        return self._core.num_contexts

    @property
    def namespaces(self) -> list[str]:
        """Names of the namespaces that have learned something, sorted."""
        return self._core.namespaces

    def check_integrity(self) -> None:
        """Walks all native structures; for tests, and slow.

        Raises:
            AssertionError: If any invariant is broken, saying which.
        """
        fault = self._core.find_fault()
        if fault is not None:
            raise AssertionError(f"draft cache is broken: {fault}")

    def __repr__(self) -> str:
        used, limit = self.memory_usage / 2**20, self.max_bytes / 2**20
        names = f", {len(self.namespaces)} namespaces" if len(self.namespaces) > 1 else ""
        return (
            f"DraftCache({self.num_tokens:,} tokens, {self.num_contexts:,} contexts{names}, "
            f"{used:.1f} of {limit:,.0f} MiB)"
        )


def _checked_request_id(request_id: str | None) -> str:
    """The id as the native side takes it, where empty means none."""
    if request_id is None:
        return ""
    if not 0 < len(request_id.encode()) <= MAX_REQUEST_ID:
        raise ValueError(f"a request id must have 1 to {MAX_REQUEST_ID} bytes, not {len(request_id.encode())}")
    return request_id


def _no_corpora() -> AttachedCorpora:
    from pia.drafting.attached import AttachedCorpora  # which needs this module

    return AttachedCorpora()
