"""Training rows of a text or chat file: read, split, told apart and dealt out in batches."""

from pia.ipad.data.batches import Batch, Batches, make_batch
from pia.ipad.data.encoder import RowEncoder
from pia.ipad.data.rows import Row, Rows
from pia.ipad.data.source import read_rows
from pia.ipad.data.split import Split, split

__all__ = ["Batch", "Batches", "Row", "RowEncoder", "Rows", "Split", "make_batch", "read_rows", "split"]
