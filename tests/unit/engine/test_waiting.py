import pytest

from ossia.engine.request import Request
from ossia.engine.sequence import Sequence
from ossia.engine.waiting import PRIORITY_STEP, WaitingQueue, rank


def make_sequence(arrival: int, *, priority: int = 0, index: int = 0) -> Sequence:
    request = Request(id="r", prompt_ids=(1,), priority=priority)
    return Sequence(request=request, index=index, seed=0, arrival=arrival, max_length=9, token_ids=[1], num_prompt=1)


def drain(queue: WaitingQueue) -> list[Sequence]:
    order = []
    while (head := queue.peek()) is not None:
        assert queue.pop() is head
        order.append(head)
    return order


def test_order_is_by_arrival_and_priority() -> None:
    queue = WaitingQueue()
    first, second = make_sequence(0), make_sequence(1)
    urgent = make_sequence(PRIORITY_STEP, priority=1)  # equal to the first by key, and later
    sequences = [second, urgent, first]
    for sequence in sequences:
        queue.push(sequence)
    assert len(queue) == 3
    assert drain(queue) == [first, urgent, second] == sorted(sequences, key=rank)
    assert len(queue) == 0


def test_one_that_comes_back_keeps_its_place() -> None:
    queue = WaitingQueue()
    first, second = make_sequence(0), make_sequence(1)
    queue.push(first)
    queue.push(second)
    queue.pop()
    queue.push(first)
    assert drain(queue) == [first, second]


def test_discarded_ones_are_passed_over() -> None:
    queue = WaitingQueue()
    sequences = [make_sequence(arrival) for arrival in range(4)]
    for sequence in sequences:
        queue.push(sequence)
    queue.discard(sequences[0])
    queue.discard(sequences[2])
    queue.discard(sequences[2])
    assert len(queue) == 2
    assert drain(queue) == [sequences[1], sequences[3]]


@pytest.mark.parametrize("is_gone", [False, True])
def test_those_aside_come_up_when_the_leader_is_computed_or_one_by_one_when_it_is_gone(is_gone: bool) -> None:
    queue = WaitingQueue()
    leader, *followers = (make_sequence(arrival, index=arrival) for arrival in range(4))
    queue.push(leader)
    queue.push_aside(followers, leader=leader)
    assert len(queue) == 4
    assert drain(queue) == [leader]
    queue.discard(followers[0])
    if is_gone:
        queue.note_gone(leader)
        assert drain(queue) == [followers[1]]
        queue.note_gone(leader)  # leads no longer
        assert drain(queue) == []
        queue.note_computed(followers[1])
        assert drain(queue) == [followers[2]]
    else:
        queue.note_computed(leader)
        assert drain(queue) == [followers[1], followers[2]]
    assert len(queue) == 0
