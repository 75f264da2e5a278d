"""Reading, splitting and batching of logs."""

from recsys.data.cache import EncodedData, encoded
from recsys.data.splits import Splits, splits
from serving.parquet import Source, open_source

__all__ = ["EncodedData", "Source", "Splits", "encoded", "open_source", "splits"]
