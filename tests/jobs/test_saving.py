"""Pictures are kept beside the work: in order, all of them, and no fault goes unseen."""

import logging
import threading
import time

import pytest

from modules.jobs.saving import MOST_WAITING, Saving


def test_keeps_all_in_order_in_another_thread():
    kept: list[tuple[int, str]] = []
    with Saving[int](lambda number: kept.append((number, threading.current_thread().name))) as saving:
        for number in range(20):
            saving.hand_over(number)
    assert [number for number, _ in kept] == list(range(20))
    assert all(thread.startswith("saving") for _, thread in kept)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saving")]


def test_the_work_goes_on_while_a_picture_is_kept():
    gate, begun = threading.Event(), threading.Event()

    def keep(number: int) -> None:
        begun.set()
        assert gate.wait(60)

    with Saving[int](keep) as saving:
        saving.hand_over(0)
        assert begun.wait(60)
        saving.hand_over(1)  # returns although the first is not kept yet
        gate.set()


def test_waits_when_too_many_are_under_way():
    gate, handed = threading.Event(), []

    def keep(number: int) -> None:
        assert gate.wait(60)

    def work() -> None:
        with Saving[int](keep) as saving:
            for number in range(MOST_WAITING + 1):
                saving.hand_over(number)
                handed.append(number)

    thread = threading.Thread(target=work)
    thread.start()
    while len(handed) < MOST_WAITING:
        time.sleep(0.01)
    thread.join(0.3)  # time for one too many
    assert handed == list(range(MOST_WAITING))
    gate.set()
    thread.join(60)
    assert len(handed) == MOST_WAITING + 1


@pytest.mark.parametrize("pictures", [1, 8])
def test_what_failed_is_raised(pictures: int):
    def keep(number: int) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), Saving[int](keep) as saving:
        for number in range(pictures):
            saving.hand_over(number)


def test_an_error_of_the_work_comes_first_and_the_other_is_logged(caplog: pytest.LogCaptureFixture):
    kept: list[int] = []

    def keep(number: int) -> None:
        kept.append(number)
        raise OSError("no room")

    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="the work"), Saving[int](keep) as saving:
        saving.hand_over(0)
        raise ValueError("the work")
    assert kept == [0] and "could not be kept" in caplog.text
