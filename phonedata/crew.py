"""Producer threads: one whole batch each, delivered in order, their errors handed to the consumer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from phonedata.errors import SpecError

CLOSED = "the loader was closed while one of its epochs was being read; open another one"


class Crew:
    """`threads` daemon threads that call `produce(index, slot)` for index in [start, stop), at most `slots` ahead.

    A slot is `index % slots`; it is produced into again only after its `release`, so no two threads ever hold the
    same one. `take()` returns what `produce` returned, in order of index, and raises what it raised, with the thread's
    traceback. When the crew is closed or collected, or the interpreter exits, its threads end.
    """

    def __init__(self, produce: Callable, start: int, stop: int, slots: int, threads: int):
        self._next, self._stop = start, stop
        self._ahead = min(start + slots, stop)
        self._tasks: SimpleQueue = SimpleQueue()
        self._ready = [SimpleQueue() for _ in range(slots)]
        for index in range(start, self._ahead):
            self._tasks.put(index)
        stopped = threading.Event()
        # The threads hold no reference to the crew: a forgotten one is collected, and its finalizer ends them.
        self._threads = [
            threading.Thread(
                target=_work, args=(produce, self._tasks, self._ready, stopped), name=f"phonedata-{n}", daemon=True
            )
            for n in range(threads)
        ]
        self._end = weakref.finalize(self, _end, self._tasks, self._ready, stopped, self._threads)
        for thread in self._threads:
            thread.start()

    def take(self):
        """The next result, waited for."""
        if not self._end.alive:
            raise SpecError(CLOSED)
        result, error = self._ready[self._next % len(self._ready)].get()
        self._next += 1
        if error is not None:
            self.close()
            raise error
        return result

    def release(self) -> None:
        """Give the oldest taken slot back to the producers: its batch is no longer read."""
        if self._ahead < self._stop:
            self._tasks.put(self._ahead)
            self._ahead += 1

    def close(self) -> None:
        """End the threads and wait for them; a batch being produced is finished and dropped."""
        self._end()


def _work(produce, tasks, ready, stopped) -> None:
    while (index := tasks.get()) is not None and not stopped.is_set():
        slot = index % len(ready)
        try:
            outcome = (produce(index, slot), None)
        except BaseException as error:
            outcome = (None, error)
        ready[slot].put(outcome)
        del outcome


def _end(tasks, ready, stopped, threads) -> None:
    stopped.set()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        # The collector may run in one of the threads themselves.
        if thread is not threading.current_thread() and thread.ident is not None:
            thread.join()
    for queue in ready:
        # For a consumer that waits in another thread.
        queue.put((None, SpecError(CLOSED)))
