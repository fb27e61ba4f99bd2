"""work in threads, results in order, memory bounded: the one queue of the pipeline."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Threads that live as long as a task does.

    The tokenizer keeps the words that it has seen for each thread by itself: a new thread encodes at half the speed.

    Args:
        count: number of threads; with one, the calling thread does the work itself.
    """

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count)  # starts a thread when there is work for it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # after an error, queued work is cancelled

    def in_order(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        weight: Callable[[Item], int],
        limit: int,
    ) -> Iterator[Result]:
        """Apply a function to items in the threads.

        Items are taken in the calling thread, as far ahead as the threads have use for; results come in the items'
        order.

        Args:
            function: what is done to each item; its exception is raised when the item's turn comes.
            items: what it is done to.
            weight: bytes that an item holds in memory.
            limit: bytes that the items in flight may hold together; one item alone may exceed it.
        """
        if self._count == 1:
            yield from map(function, items)
            return
        waiting: deque[tuple[Future[Result], int]] = deque()
        held = 0
        try:
            for item in items:
                size = weight(item)
                while waiting and (held + size > limit or len(waiting) > 2 * self._count):
                    future, freed = waiting.popleft()
                    held -= freed
                    yield future.result()
                waiting.append((self._pool.submit(function, item), size))
                held += size
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
