"""The feed: a Ray Data source that asks the foreman for tickets until there are no more.

One read task beside the driver, which costs no CPU while it waits. Its rows are a few hundred bytes
and thus stay with the driver: they are never lost with a machine. Should its process die, Ray runs the task
again from its first row; so tickets are asked for by number.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata


class Feed(Datasource):
    """Tickets, one a block: ``ticket`` (pickled) and an empty ``payload``."""

    def __init__(self, foreman: Any) -> None:
        self._foreman = foreman

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known: it depends on what comes."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The one task."""
        foreman = self._foreman

        def read() -> Iterator[pa.Table]:
            for number in itertools.count():
                if (ticket := ray.get(foreman.take.remote(number))) is None:
                    return
                yield table(pickle.dumps(ticket), None)

        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, unknown)]


SCHEMA = pa.schema([("ticket", pa.binary()), ("payload", pa.large_binary())])


def table(ticket: bytes, payload: bytes | None) -> pa.Table:
    """One row."""
    return pa.table({"ticket": [ticket], "payload": [payload]}, schema=SCHEMA)
