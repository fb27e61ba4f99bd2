"""The promises of ordered.py: results in order, memory bounded, errors in their turn, nothing left running."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.ordered import Workers


@given(st.lists(st.integers(0, 30)), st.integers(1, 4), st.integers(1, 50))
def test_results_come_in_the_order_of_the_items_whatever_the_threads_and_the_limit(items, workers, limit):
    with Workers(workers) as pool:
        found = pool.in_order(lambda item: item * 2, items, weight=lambda item: item, limit=limit)
        assert list(found) == [item * 2 for item in items]


def test_items_in_flight_hold_no_more_than_the_limit_and_one_alone_may_exceed_it():
    lock, held, most = threading.Lock(), 0, 0

    def work(size: int) -> int:
        nonlocal held, most
        with lock:
            held += size
            most = max(most, held)
        time.sleep(0.002)
        with lock:
            held -= size
        return size

    sizes = [4, 4, 4, 50, 4, 4, 4, 4]
    with Workers(4) as pool:
        assert list(pool.in_order(work, sizes, weight=lambda size: size, limit=10)) == sizes
    assert most == 50, "the large item ran with others"


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_in_its_turn_and_stops_the_reading(workers):
    read = []

    def items():
        for number in range(1_000):
            read.append(number)
            yield number

    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    with Workers(workers) as pool:
        results = pool.in_order(work, items(), weight=lambda _: 1, limit=100)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="five"):
            next(results)
    assert len(read) < 50


def test_threads_end_with_the_task_also_when_the_results_are_not_wanted_any_more():
    before = threading.active_count()
    with Workers(3) as pool:
        results = pool.in_order(str, iter(range(1_000)), weight=lambda _: 1, limit=100)
        assert next(results) == "0"
        results.close()
    assert threading.active_count() == before


def test_the_same_threads_do_the_next_unit():
    with Workers(2) as pool:
        units = [set(pool.in_order(lambda _: threading.get_ident(), range(50), weight=int, limit=9)) for _ in range(5)]
    assert len(set().union(*units)) <= 2


def test_what_waits_for_a_thread_is_dropped_when_the_task_fails():
    begun, go_on = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            go_on.wait(5)
        return number

    with pytest.raises(OSError, match="full"), Workers(2) as pool:
        results = pool.in_order(work, range(100), weight=lambda _: 1, limit=100)
        next(results)
        threading.Timer(0.2, go_on.set).start()
        raise OSError("the disk is full")
    assert len(begun) <= 3
