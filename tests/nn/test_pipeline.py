"""Pipeline schedules, counted tick by tick. That pipelines compute what one device does is in tests/train/test_parallel.py."""

import itertools

import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.nn.pipeline import Schedule
from lm_jax.nn.stack import StackConfig

SCHEDULES = [Schedule(2, 1, 2), Schedule(4, 1, 4), Schedule(4, 1, 7), Schedule(2, 2, 4), Schedule(4, 2, 8), Schedule(3, 4, 9)]


def work(schedule):
    """{(stage, tick): (piece of the stack, micro-batch)} of all that is not idle."""
    done = {}
    for stage, tick in itertools.product(range(schedule.stages), range(schedule.num_ticks)):
        number, micro_batch, busy = schedule.work(tick, stage)
        if busy:
            done[stage, tick] = (number * schedule.stages + stage, micro_batch)
    return done


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_micro_batch_passes_every_piece_one_tick_after_the_other(schedule):
    done = work(schedule)
    pieces = schedule.stages * schedule.rounds
    assert sorted(done.values()) == sorted(itertools.product(range(pieces), range(schedule.micro_batches)))
    ticks = {what: (stage, tick) for (stage, tick), what in done.items()}
    for micro_batch in range(schedule.micro_batches):
        places = [ticks[piece, micro_batch] for piece in range(pieces)]
        assert [stage for stage, _ in places] == [piece % schedule.stages for piece in range(pieces)]
        assert [tick - places[0][1] for _, tick in places] == list(range(pieces))  # never waits: the ring has no store
        assert schedule.start(micro_batch, schedule.rounds - 1) + schedule.stages - 1 == places[-1][1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_bubble_is_that_of_the_formula(schedule):
    stages, rounds, micro_batches = schedule
    idle = 1 - len(work(schedule)) / (stages * schedule.num_ticks)
    assert schedule.bubble_share == pytest.approx(idle)
    assert idle == pytest.approx((stages - 1) / (rounds * micro_batches + stages - 1))
    assert f"{idle:.1%}" in str(schedule)


def test_rounds_of_micro_batches_that_do_not_fill_a_group_are_refused():
    with pytest.raises(ConfigError, match="the 6 micro-batches must be a multiple of the 4 stages"):
        StackConfig(repeats=8, rounds=2).schedule(12, 4, 6)
    assert StackConfig(repeats=8, rounds=2).schedule(12, 4, None) == Schedule(4, 2, 12)
