"""The corpora that are attached to a draft cache, by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pia import _core
from pia.drafting.corpus import Corpus
from pia.errors import CacheMismatchError, UnsupportedOptionError

if TYPE_CHECKING:
    from pia.drafting.cache import DraftCache


class AttachedCorpora:
    """A dictionary of corpora that is replaced, not changed, so that readers need no lock."""

    def __init__(self) -> None:
        self._by_name: dict[str, Corpus] = {}
        self._changing = threading.Lock()

    @property
    def names(self) -> list[str]:
        """What is attached, sorted."""
        return sorted(self._by_name)

    def attach(self, name: str, corpus: Corpus | str | os.PathLike[str], cache: DraftCache) -> None:
        """See `DraftCache.attach`."""
        if not isinstance(name, str) or not name:
            raise UnsupportedOptionError(f"a corpus is attached by a name, which {name!r} is not")
        opened = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
        _ = opened.core  # says so if it is closed
        with self._changing:
            _require_same_tokenizer(name, opened, cache)
            cache.bind(cache.vocab_size or opened.vocab_size, opened.tokenizer_fingerprint)
            self._by_name = {**self._by_name, name: opened}

    def detach(self, name: str) -> None:
        """See `DraftCache.detach`."""
        with self._changing:
            self._require([name])
            self._by_name = {known: corpus for known, corpus in self._by_name.items() if known != name}

    def select(self, names: Iterable[str]) -> list[_core.Corpus]:
        """The native corpora of these names, each once.

        Raises:
            UnsupportedOptionError: If a name is not attached.
        """
        chosen = list(dict.fromkeys([names] if isinstance(names, str) else names))
        return [corpus.core for corpus in self._require(chosen)]

    def _require(self, names: list[str]) -> list[Corpus]:
        by_name = self._by_name
        for name in names:
            if name not in by_name:
                known = ", ".join(sorted(by_name)) or "none"
                raise UnsupportedOptionError(
                    f"no corpus named {name!r} is attached to this draft cache (attached: {known}); "
                    "attach it with cache.attach(name, file)"
                )
        return [by_name[name] for name in names]


def _require_same_tokenizer(name: str, corpus: Corpus, cache: DraftCache) -> None:
    ours, theirs = cache.tokenizer_fingerprint, corpus.tokenizer_fingerprint
    if ours is not None and theirs is not None:
        if ours != theirs:
            raise CacheMismatchError(
                f"the corpus {name!r} was built with another tokenizer (fingerprint {theirs}, not {ours}); "
                "build it again with this model's"
            )
    elif cache.vocab_size not in (None, corpus.vocab_size):
        raise CacheMismatchError(
            f"the corpus {name!r} is for a vocabulary of {corpus.vocab_size} tokens, not {cache.vocab_size}; "
            "build it again with this model's tokenizer"
        )
