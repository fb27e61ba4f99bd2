"""work in threads, results in order, memory bounded: the one queue of the pipeline."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    weight: Callable[[Item], int],
    limit: int,
) -> Iterator[Result]:
    """Apply a function to items in threads.

    Items are taken in the calling thread, as far ahead as the threads have use for; results come in the items' order.

    Args:
        function: what is done to each item; its exception is raised when the item's turn comes.
        items: what it is done to.
        workers: number of threads; with one, the calling thread does the work itself.
        weight: bytes that an item holds in memory.
        limit: bytes that the items in flight may hold together; one item alone may exceed it.
    """
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                size = weight(item)
                while waiting and (held + size > limit or len(waiting) > 2 * workers):
                    future, freed = waiting.popleft()
                    held -= freed
                    yield future.result()
                waiting.append((pool.submit(function, item), size))
                held += size
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
