"""Corpora: what is known beforehand (a company's documents, a code base), read from a file and never written.

A corpus holds the counts of a draft cache, frozen in a file that is mapped into memory: it opens at once, whatever its
size, takes memory only for what is read, and shares that with all processes that read it. Attach it to a `DraftCache`
by name, and name it where a request shall draft from it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pia import _core
from pia.drafting import atomic_file, corpus_file
from pia.drafting.corpus_file import CorpusHeader
from pia.drafting.token_ids import TokenSequence, as_token_ids
from pia.errors import CacheFileError

DEFAULT_MAX_MEMORY = 1 << 30
MIN_MAX_MEMORY = 1 << 20

Progress = Callable[[float], None]
"""Told the share of the work that is done, from 0 to 1."""


class Corpus:
    """A corpus file, opened for drafting. Any number of threads, caches and requests may share one.

    Replace a corpus by building it anew under its name (the old one stays readable for those who have it open); never
    write into a file that is open.
    """

    def __init__(self, core: _core.Corpus, header: CorpusHeader, path: Path) -> None:
        self._core: _core.Corpus | None = core
        self._header = header
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, preload: bool = False) -> Corpus:
        """Maps a file into memory.

        Args:
            path: What `build_corpus` wrote.
            preload: Read all of it in the background now, rather than piece by piece as it is needed.

        Raises:
            CacheFileError: If the file is missing, damaged, not a corpus, or of another format.
        """
        try:
            with open(path, "rb", buffering=0) as file:
                header = corpus_file.unpack_header(file.read(corpus_file.HEADER_BYTES), path)
                core = _core.Corpus.open(
                    file.fileno(),
                    header.vocab_size,
                    header.num_buckets,
                    header.num_words,
                    header.directory_checksum,
                    header.data_checksum,
                )
        except OSError as error:
            raise CacheFileError(f"can't read the corpus {os.fspath(path)}: {error.strerror or error}") from error
        except CacheFileError:
            raise
        except (ValueError, TypeError) as error:
            raise corpus_file.damaged(path, str(error)) from error
        if preload:
            core.preload()
        return cls(core, header, Path(path))

    def close(self) -> None:
        """Lets go of the file. Requests under way keep what they read until they end. Idempotent."""
        self._core = None

    @property
    def core(self) -> _core.Corpus:
        """The native corpus.

        Raises:
            ValueError: If it is closed.
        """
        if self._core is None:
            raise ValueError(f"the corpus {self.path} is closed; open it again")
        return self._core

    @property
    def header(self) -> CorpusHeader:
        """Everything that the file says about itself."""
        return self._header

    @property
    def vocab_size(self) -> int:
        """Number of token ids of its tokenizer."""
        return self._header.vocab_size

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Which tokenizer its token ids belong to, or None if nobody said."""
        return self._header.tokenizer_fingerprint

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return self._header.num_tokens

    @property
    def num_sequences(self) -> int:
        """Texts that it was built from."""
        return self._header.num_sequences

    @property
    def num_contexts(self) -> int:
        """Distinct contexts of all shapes."""
        return self._header.num_contexts

    @property
    def nbytes(self) -> int:
        """Size of the file; memory holds what has been read of it."""
        return self.core.num_bytes

    def counts(self, context: TokenSequence, shape: int) -> dict[int, int]:
        """What followed a context, and how often; at most 64 continuations, the most frequent first.

        Args:
            context: The latest tokens, [n], at least as many as the shape reaches back.
            shape: Index into `header.shapes`.

        Raises:
            ValueError: If the context is too short, or there is no such shape.
        """
        found = self.core.counts(as_token_ids(context), shape)
        return {} if found is None else dict(found[1])

    def total(self, context: TokenSequence, shape: int) -> int:
        """How often a context was followed by anything; see `counts`."""
        found = self.core.counts(as_token_ids(context), shape)
        return 0 if found is None else found[0]

    def verify(self) -> None:
        """Reads the whole file and compares checksums; a second per GB, or what the disk takes.

        Raises:
            CacheFileError: If it is damaged.
        """
        fault = self.core.find_fault()
        if fault is not None:
            raise corpus_file.damaged(self.path, fault)

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._core is None else f"{self.nbytes / 2**20:,.1f} MiB"
        return f"Corpus({str(self.path)!r}, {self.num_tokens:,} tokens, {self.num_contexts:,} contexts, {state})"


class CorpusBuilder:
    """Builds a corpus file, sequence by sequence, in bounded memory. Use it as a context manager.

    What memory does not hold is kept in a file without a name in the target's folder, about 100 bytes a token, which is
    gone when the builder is, whatever ended it. The target appears, or is replaced, when `finish` is done.

    Args:
        path: The file to write.
        vocab_size: Number of token ids.
        tokenizer_fingerprint: See `pia.drafting.fingerprint`; who opens the corpus for another tokenizer is told.
        max_memory: Bound of the memory used, in bytes.

    Raises:
        CacheFileError: If the folder is missing or can't be written.
        ValueError: If `vocab_size` is not positive, or `max_memory` below 1 MiB.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vocab_size: int,
        tokenizer_fingerprint: str | None = None,
        max_memory: int = DEFAULT_MAX_MEMORY,
    ) -> None:
        if not 0 < vocab_size <= 1 << 31:
            raise ValueError(f"vocab_size must lie between 1 and 2147483648, not {vocab_size}")
        if max_memory < MIN_MAX_MEMORY:
            raise ValueError(f"max_memory must be at least {MIN_MAX_MEMORY} bytes (1 MiB), not {max_memory}")
        self._path = path
        self._target = Path(path).resolve()  # through a symbolic link, to the file it stands for
        self._temporary = atomic_file.temporary_beside(self._target)
        self._vocab_size = vocab_size
        self._fingerprint = tokenizer_fingerprint
        self._lock = threading.Lock()
        try:
            self._core: _core.CorpusBuilder | None = _core.CorpusBuilder(str(self._temporary), vocab_size, max_memory)
        except OSError as error:
            raise self._cannot_write(error) from error

    def add(self, token_ids: TokenSequence) -> None:
        """Counts one sequence, [n], from beginning to end.

        Raises:
            ValueError: If a token id lies outside the vocabulary; the sequence is then left out.
            CacheFileError: If the disk is full.
        """
        self.extend(token_ids)
        self.end_sequence()

    def extend(self, token_ids: TokenSequence) -> None:
        """Counts more of a sequence too long to be held at once; see `add`."""
        ids = as_token_ids(token_ids)
        with self._lock:
            try:
                self._open().extend(ids)
            except OSError as error:
                raise self._cannot_write(error) from error

    def end_sequence(self) -> None:
        """Says that what follows is another sequence."""
        with self._lock:
            self._open().end_sequence()

    @property
    def num_tokens(self) -> int:
        """Tokens counted so far."""
        return self._open().num_tokens

    @property
    def num_sequences(self) -> int:
        """Sequences counted so far, the one at hand included."""
        return self._open().num_sequences

    @property
    def num_runs(self) -> int:
        """How often memory was full so far."""
        return self._open().num_runs

    def finish(self, progress: Progress | None = None) -> CorpusHeader:
        """Writes the file and puts it in place. The builder is closed then.

        Raises:
            CacheFileError: If it can't be written; an old file is left as it was.
        """
        with self._lock:
            try:
                figures = self._open().finish(_shares(progress))
                header = corpus_file.native_header(figures, self._vocab_size, self._fingerprint)
                with open(self._temporary, "r+b") as file:
                    file.write(corpus_file.pack_header(header))
                atomic_file.put_in_place(self._temporary, self._target)
            except OSError as error:
                raise self._cannot_write(error) from error
            finally:
                self._discard()
        return header

    def close(self) -> None:
        """Gives up what is not finished and removes its files. Idempotent."""
        with self._lock:
            self._discard()

    def _open(self) -> _core.CorpusBuilder:
        if self._core is None:
            raise ValueError("this corpus builder is closed; make a new one")
        return self._core

    def _discard(self) -> None:
        if self._core is not None:
            self._core = None
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> CacheFileError:
        return CacheFileError(
            f"can't save the corpus to {os.fspath(self._path)}: {error.strerror or error}; "
            "make sure that the folder exists, is writable and has room, or choose another path"
        )

    def __enter__(self) -> CorpusBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_corpus(
    path: str | os.PathLike[str],
    sequences: Iterable[TokenSequence],
    *,
    vocab_size: int,
    tokenizer_fingerprint: str | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    progress: Progress | None = None,
) -> Corpus:
    """Builds a corpus from token sequences, taken one by one, and opens it.

    Args:
        path: The file to write.
        sequences: Each a text's token ids, [n]; an iterator will do.
        vocab_size: Number of token ids.
        tokenizer_fingerprint: Which tokenizer the ids belong to.
        max_memory: Bound of the memory used, in bytes.
        progress: Told the share done of what follows reading the sequences.

    Raises:
        CacheFileError: If the file can't be written; an old file is left as it was.
        ValueError: If a token id lies outside the vocabulary.
    """
    with CorpusBuilder(
        path, vocab_size=vocab_size, tokenizer_fingerprint=tokenizer_fingerprint, max_memory=max_memory
    ) as builder:
        for sequence in sequences:
            builder.add(sequence)
        builder.finish(progress)
    return Corpus.open(path)


def _shares(progress: Progress | None) -> Callable[[int, int], None]:
    def tell(done: int, count: int) -> None:
        if progress is not None:
            progress(done / max(count, 1))

    return tell
