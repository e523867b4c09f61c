"""Worker threads whose results come back in the order of their tasks."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


class OrderedPool:
    """Runs `function(tool, task)` on up to `workers` threads, each with a tool of its own made by `make_tool`.

    Threads suffice: reading files, the kernels, digests and writing all release the interpreter's lock.
    """

    def __init__(self, workers: int, make_tool: Callable):
        self.workers, self._make_tool = max(1, workers), make_tool
        self._idle: deque = deque()

    def in_order(self, function: Callable, tasks: list) -> Iterator[tuple]:
        """(task, result) in the order of `tasks`; few are in flight, so memory stays flat.

        The first error, in that order, is raised after the running tasks have ended.
        """
        if self.workers == 1 or len(tasks) <= 1:
            for task in tasks:
                yield task, self._run(function, task)
            return
        with ThreadPoolExecutor(min(self.workers, len(tasks))) as pool:
            waiting: deque = deque()
            try:
                for task in tasks:
                    waiting.append((task, pool.submit(self._run, function, task)))
                    if len(waiting) > 2 * self.workers:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, function: Callable, task):
        # There are never more tools than threads: one is taken only while its holder runs.
        try:
            tool = self._idle.pop()
        except IndexError:
            tool = self._make_tool()
        try:
            return function(tool, task)
        finally:
            self._idle.append(tool)
