"""Work done by a pool before its results are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(pool: Executor, make: Callable[..., T], tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[T]:
    """The results of some tasks in their order, while a pool works on the next ones.

    Args:
        pool: Works.
        make: Makes a result of a task's arguments.
        tasks: Arguments of each; read no earlier than it is handed to the pool.
        ahead: How many tasks may be begun before their results are asked for.

    Yields:
        The results. What a task raises is raised here.
    """
    remaining = iter(tasks)
    waiting: deque[Future[T]] = deque()
    while True:
        waiting.extend(pool.submit(make, *task) for task in islice(remaining, ahead - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()
