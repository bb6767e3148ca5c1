import os
import signal

import pytest

from w2vbert.data.parallel import map_in_processes
from w2vbert.errors import UserError


def square(number: int) -> int:
    if number < 0:
        raise UserError(f"{number} is negative")
    return number * number


def process_id(_: int) -> int:
    return os.getpid()


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items_and_errors_as_they_are(jobs: int) -> None:
    assert list(map_in_processes(square, range(7), jobs)) == [0, 1, 4, 9, 16, 25, 36]
    assert list(map_in_processes(square, [], jobs)) == []
    with pytest.raises(UserError, match="-3 is negative"):
        list(map_in_processes(square, [1, -3], jobs))


def test_fresh_items_have_processes_of_their_own() -> None:
    ids = list(map_in_processes(process_id, range(3), 1, fresh=True))
    assert len({*ids, os.getpid()}) == 4


def test_a_killed_process_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="a process of die was killed"):
        list(map_in_processes(die, [1], 1, fresh=True))


def test_no_process_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        list(map_in_processes(square, [1], 0))
