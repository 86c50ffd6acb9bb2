"""Which sample is seen when: the same samples in every batch, however it is shared, and from whichever step."""

import pytest

from peft_runs.order import TestOrder as DealtOrder
from peft_runs.order import TrainingOrder, epoch_order


def order(start: int = 0, parts: int = 1, process: int = 0, processes: int = 1) -> list[list[tuple[int, int]]]:
    return list(TrainingOrder(103, 12, start, 20, 7, parts, process, processes))


@pytest.mark.parametrize(("parts", "processes"), [(1, 2), (2, 1), (3, 2)])
def test_pieces_make_up_the_batch(parts: int, processes: int) -> None:
    pieces = [order(parts=parts, process=process, processes=processes) for process in range(processes)]
    for step, batch in enumerate(order()):
        shared = [key for part in range(parts) for piece in pieces for key in piece[step * parts + part]]
        assert shared == batch


def test_going_on_takes_the_rest_of_the_same_order() -> None:
    assert order(start=13) == order()[13:]


def test_an_epoch_sees_no_sample_twice_and_the_next_in_another_order() -> None:
    first, second = ([key for batch in order()[begin : begin + 8] for key in batch] for begin in (0, 8))
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in second} == {1}
    assert len({index for _, index in first}) == 96
    assert [index for _, index in first] != [index for _, index in second]
    assert sorted(epoch_order(7, 0, 103)) == list(range(103))


def test_test_samples_are_dealt_out_once() -> None:
    dealt = [key for process in range(3) for batch in DealtOrder(50, 8, process, 3) for key in batch]
    assert sorted(dealt) == [(0, index) for index in range(50)]
