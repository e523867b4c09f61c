"""Threads that make batches, one whole batch each: delivered in order, their errors handed to the consumer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from ..errors import SpecError

Queue: TypeAlias = "SimpleQueue[Any]"
Lock: TypeAlias = "AbstractContextManager[Any]"
CLOSED = "the loader was closed while one of its epochs was being read; open another one"


class Prefetcher:
    """`threads` daemon threads that call `produce(index, slot)` for index in [start, stop), at most `slots` ahead.

    With `helps` the consumer produces too: instead of sleeping until the next result is ready, it makes that result or
    a later one itself. (Two threads that wake each other for every batch of half a millisecond lose a sixth of it.)
    With `threads` = 0 and `helps` the consumer makes every result when it asks for it.

    The slot of an index is `index % slots`. It is written again only after `release`, so no two threads ever hold the
    same slot. `take()` returns the results of `produce` in order of index, and raises its errors with the thread's
    traceback. The threads end when the prefetcher is closed or collected, or when the interpreter exits.
    """

    def __init__(
        self,
        produce: Callable[[int, int], Any],
        start: int,
        stop: int,
        slots: int,
        threads: int,
        *,
        helps: bool = False,
    ):
        self._next, self._stop = start, stop
        self._ahead = min(start + slots, stop)
        self._tasks: Queue = SimpleQueue()
        self._ready: list[Queue] = [SimpleQueue() for _ in range(slots)]
        for index in range(start, self._ahead):
            self._tasks.put(index)
        self._produce, self._helps, self._helper_lock = produce, helps, threading.RLock()
        self._stopped = stopped = threading.Event()
        # The threads hold no reference to the prefetcher: a forgotten one is collected, and its finalizer ends them.
        self._threads = [
            threading.Thread(
                target=_work, args=(produce, self._tasks, self._ready, stopped), name=f"phonedata-{n}", daemon=True
            )
            for n in range(threads)
        ]
        self._end = weakref.finalize(self, _end, self._tasks, self._ready, stopped, self._threads, self._helper_lock)
        for thread in self._threads:
            thread.start()

    def take(self) -> Any:
        """The next result, waited for."""
        if not self._end.alive:
            raise SpecError(CLOSED)
        ready = self._ready[self._next % len(self._ready)]
        while self._helps and ready.empty() and self._help():
            pass
        result, error = ready.get()
        self._next += 1
        if error is not None:
            self.close()
            raise error
        return result

    def _help(self) -> bool:
        """Make the lowest result that nobody makes yet; False where there is none."""
        with self._helper_lock:
            if self._stopped.is_set():
                return False
            try:
                index = self._tasks.get_nowait()
                _make(self._produce, self._ready, index, Exception)
            except Empty:
                return False
            except BaseException:
                # What interrupts the consumer's own thread is no outcome, and nobody else will make this result.
                self.close()
                raise
            return True

    def release(self) -> None:
        """Give the oldest taken slot back to the producers: its batch is no longer read."""
        if self._ahead < self._stop:
            self._tasks.put(self._ahead)
            self._ahead += 1

    def close(self) -> None:
        """End the threads and wait for them; a batch being produced is finished and dropped."""
        self._end()


def _make(produce: Callable[[int, int], Any], ready: list[Queue], index: int, caught: type[BaseException]) -> None:
    """Produce one result into its slot's queue, as (result, None), or as (None, error) for an error of `caught`."""
    slot = index % len(ready)
    try:
        outcome: tuple[Any, BaseException | None] = (produce(index, slot), None)
    except caught as error:
        outcome = (None, error)
    ready[slot].put(outcome)


def _work(produce: Callable[[int, int], Any], tasks: Queue, ready: list[Queue], stopped: threading.Event) -> None:
    """What a thread does: make the results that `tasks` names, until it names None."""
    while (index := tasks.get()) is not None and not stopped.is_set():
        _make(produce, ready, index, BaseException)


def _end(
    tasks: Queue,
    ready: list[Queue],
    stopped: threading.Event,
    threads: list[threading.Thread],
    helper_lock: Lock,
) -> None:
    """End all threads and wake a consumer that waits."""
    stopped.set()
    try:
        with helper_lock:  # until a consumer in another thread has finished the result that it makes
            pass
    finally:  # an interrupted wait leaves no thread behind
        for _ in threads:
            tasks.put(None)
    for thread in threads:
        # The collector may run in one of the threads themselves.
        if thread is not threading.current_thread() and thread.ident is not None:
            thread.join()
    for queue in ready:
        # For a consumer that waits in another thread.
        queue.put((None, SpecError(CLOSED)))
