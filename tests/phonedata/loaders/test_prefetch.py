"""Threads that make batches: in order, errors where they belong, nothing left behind when they end."""

import random
import signal
import threading
import time
import traceback

import pytest

from phonedata import SpecError
from phonedata.loaders.prefetch import Prefetcher
from tests.conftest import producers

pytestmark = pytest.mark.usefixtures("no_producers_left")


def consumer_of(prefetcher) -> tuple[threading.Thread, list[SpecError]]:
    """A started thread that takes and releases until the prefetcher is closed, and what it then heard."""
    heard: list[SpecError] = []

    def consume():
        try:
            while True:
                prefetcher.take()
                prefetcher.release()
        except SpecError as error:
            heard.append(error)

    consumer = threading.Thread(target=consume, name="consumer")
    consumer.start()
    return consumer, heard


@pytest.mark.parametrize(("threads", "helps"), [(1, False), (2, False), (5, False), (0, True), (1, True), (3, True)])
@pytest.mark.parametrize("slots", [1, 2, 7])
def test_results_come_in_order_and_no_slot_is_held_twice(threads, helps, slots):
    held, lock = set(), threading.Lock()

    def produce(index, slot):
        with lock:
            assert slot not in held
            held.add(slot)
        time.sleep(random.random() * 2e-4)
        return index * index

    prefetcher = Prefetcher(produce, 3, 60, slots, threads, helps=helps)
    for index in range(3, 60):
        assert prefetcher.take() == index * index
        assert index % slots in held
        with lock:
            held.remove(index % slots)
        prefetcher.release()
    prefetcher.close()


def test_no_slot_is_refilled_before_its_release():
    produced = []
    prefetcher = Prefetcher(lambda index, slot: produced.append(index), 0, 100, 4, 2)
    prefetcher.take()
    prefetcher.take()
    time.sleep(0.05)
    assert sorted(produced) == [0, 1, 2, 3]
    prefetcher.release()
    prefetcher.take()
    prefetcher.take()
    prefetcher.take()
    time.sleep(0.02)
    assert sorted(produced) == [0, 1, 2, 3, 4]
    prefetcher.close()


def test_a_consumer_that_would_wait_makes_results_itself():
    busy, makers = threading.Event(), {}

    def produce(index, slot):
        makers[index] = threading.current_thread()
        if makers[index] is not threading.main_thread():
            assert busy.wait(20)  # a thread that is held up
        return index

    prefetcher = Prefetcher(produce, 0, 40, 3, 1, helps=True)
    while not makers:
        time.sleep(0.001)
    threading.Timer(0.2, busy.set).start()
    for index in range(40):
        assert prefetcher.take() == index
        prefetcher.release()
    prefetcher.close()
    assert makers[0] is not threading.main_thread()  # its result was waited for, after two others were made
    assert [makers[1], makers[2]] == [threading.main_thread()] * 2


def test_an_interrupt_while_the_consumer_helps_is_not_kept_for_later():
    def produce(index, slot):
        if index == 2:
            raise KeyboardInterrupt
        return index

    prefetcher = Prefetcher(produce, 0, 9, 4, 0, helps=True)
    assert [prefetcher.take(), prefetcher.take()] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        prefetcher.take()
    with pytest.raises(SpecError, match="closed"):
        prefetcher.take()


def test_a_close_from_elsewhere_waits_for_the_consumer_that_helps():
    inside, leave, finished = threading.Event(), threading.Event(), []

    def produce(index, slot):
        inside.set()
        assert leave.wait(20)
        finished.append(index)
        return index

    prefetcher = Prefetcher(produce, 0, 9, 4, 0, helps=True)
    consumer, heard = consumer_of(prefetcher)
    assert inside.wait(20)
    threading.Timer(0.05, leave.set).start()
    prefetcher.close()
    assert finished == [0]
    consumer.join(20)
    assert "closed" in str(heard[0]) and finished == [0]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_a_close_that_is_interrupted_leaves_no_thread():
    inside, leave = threading.Event(), threading.Event()

    def produce(index, slot):
        if threading.current_thread().name == "consumer":
            inside.set()
            assert leave.wait(20)
        else:
            assert inside.wait(20)  # the consumer has to wait, so it helps
        return index

    prefetcher = Prefetcher(produce, 0, 99, 4, 2, helps=True)
    consumer, _ = consumer_of(prefetcher)
    assert inside.wait(20)
    here = threading.get_ident()
    threading.Timer(0.05, lambda: signal.pthread_kill(here, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        prefetcher.close()
    leave.set()
    consumer.join(20)
    for _ in range(2000):
        if not producers():
            break
        time.sleep(0.01)
    assert producers() == []


@pytest.mark.parametrize("helps", [False, True])
def test_an_error_arrives_at_its_batch_with_the_threads_traceback(helps):
    def produce(index, slot):
        if index == 5:
            raise ZeroDivisionError("batch five")
        return index

    prefetcher = Prefetcher(produce, 0, 50, 4, 0 if helps else 3, helps=helps)
    for index in range(5):
        assert prefetcher.take() == index
        prefetcher.release()
    with pytest.raises(ZeroDivisionError, match="batch five") as caught:
        prefetcher.take()
    assert "in produce" in "".join(traceback.format_exception(caught.value))
    assert producers() == []


def test_a_consumer_that_waits_hears_of_the_close():
    hold = threading.Event()
    prefetcher = Prefetcher(lambda index, slot: hold.wait(), 0, 9, 2, 1)
    consumer, heard = consumer_of(prefetcher)
    threading.Timer(0.05, hold.set).start()
    prefetcher.close()
    consumer.join(5)
    assert "closed" in str(heard[0])
