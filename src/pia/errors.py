"""What a user can do wrong, one class each. Every message names the thing and the way out."""

from __future__ import annotations


class PiaError(ValueError):
    """Base of all errors that PIA raises at its users."""


class PromptError(PiaError):
    """The prompt cannot be generated from: empty, too long, or foreign to the model."""


class PredictionError(PiaError):
    """A predicted output cannot be used: it is no text and no token ids, or foreign to the model."""


class UnsupportedOptionError(PiaError):
    """An option does not exist, is out of range, or cannot be honoured."""


class ModelError(PiaError):
    """The model cannot be found, loaded or used."""


class ConversionError(PiaError):
    """A checkpoint cannot be converted: unknown, damaged, incomplete, or its new place is taken."""


class ShrinkError(PiaError):
    """A model cannot be shrunk as asked: its family or weights, the target, the data, or the folder do not allow it."""


class CacheFileError(PiaError):
    """A draft cache file cannot be read or written."""


class CacheMismatchError(PiaError):
    """A draft cache belongs to another tokenizer."""


class TraceError(PiaError):
    """Recorded outputs cannot be read, written or replayed as asked."""


class DrafterError(PiaError):
    """A drafter to be replayed is unknown, not installed, or breaks the protocol."""


class RowsInStepError(PiaError):
    """The rows of a batch can only be decoded in step, one token each at a time."""
