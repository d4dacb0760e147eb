"""Pipeline parallelism: the layers of a stack on several devices, through which micro-batches of rows pass one after another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm_jax.core.local import all_sum, gather_for, index, mesh_axes, sum_into, vary, varying
from lm_jax.core.types import Array, Aux
from lm_jax.nn.place import Place


class Schedule(NamedTuple):
    """Which device runs which layers on which micro-batch at which tick.

    The stack is cut into `stages` x `rounds` pieces; device s has the pieces s, s + stages, ... One round is GPipe (Huang et al.
    2019, arXiv:1811.06965); with more, a micro-batch passes all devices once a round (interleaved stages, Narayanan et al. 2021,
    arXiv:2104.04473): micro-batches go in groups of as many as there are stages, so that each comes back to the first device
    when that has finished the group's round before.
    """

    stages: int
    rounds: int
    micro_batches: int

    @property
    def num_ticks(self) -> int:
        """How long it takes, in ticks of one piece on one micro-batch."""
        return self.start(self.micro_batches - 1, self.rounds - 1) + self.stages

    @property
    def bubble_share(self) -> float:
        """The share of the ticks in which a device has nothing to do: (stages - 1) / (rounds x micro_batches + stages - 1) where
        the stages divide the micro-batches or there is one round."""
        return 1 - self.rounds * self.micro_batches / self.num_ticks

    def __str__(self) -> str:
        what = f"{self.stages} stages, {self.rounds} round(s), {self.micro_batches} micro-batches"
        return f"{what}: a device is idle for {self.bubble_share:.1%} of the stack's time"

    def start(self, micro_batch: int, round: int) -> int:
        """The tick at which device 0 takes a micro-batch up for the round."""
        group, place = divmod(micro_batch, self.stages)
        return (group * self.rounds + round) * self.stages + place

    def work(self, tick: Any, stage: Any) -> tuple[Any, Any, Any]:
        """(round, micro-batch, whether there is work at all) of a device at a tick; integers, or arrays of them."""
        since = tick - stage
        turn, place = since // self.stages, since % self.stages
        micro_batch = turn // self.rounds * self.stages + place
        return turn % self.rounds, micro_batch, (since >= 0) & (micro_batch < self.micro_batches)


Stage = Callable[[Array, Place, Array, Any], tuple[Array, Any, Aux]]


def pipeline(stage: Stage, x_BTD: Array, place: Place, caches: Any, schedule: Schedule) -> tuple[Array, Any, Aux]:
    """What all pieces make of the rows [B, T, D] of all pipeline devices, each of which brings and takes back its own.

    `stage(x, place, round, caches)` runs this device's piece of a round on a micro-batch, and gives (x, caches, aux). `caches` are
    this device's, for one micro-batch of all rows. The devices of a pipeline split rows between them for whatever is not in
    the stack: embedding, head and loss.
    """
    me, M = index("layers"), schedule.micro_batches

    def cut(x: Array) -> Array:
        x = gather_for(x, "layers", 0, "batch")
        return x.reshape(M, x.shape[0] // M, *x.shape[1:])

    rows = index("batch") * x_BTD.shape[0] + jnp.arange(x_BTD.shape[0], dtype=jnp.int32)
    positions = jnp.broadcast_to(place.positions_BT, x_BTD.shape[:1] + place.positions_BT.shape[1:])
    of_rows = place._replace(positions_BT=positions, rows_B=rows, bias_NTS=None)
    x_MBTD, places = cut(x_BTD), jax.tree.map(cut, of_rows)

    def tick(carry, t):
        x_BTD, caches = carry
        number, micro_batch, busy = schedule.work(t, me)
        now = jnp.clip(micro_batch, 0, M - 1)
        x_BTD = jnp.where((me == 0) & (number == 0), x_MBTD[now], x_BTD)
        mine = jax.tree.map(lambda x: x[now], places)
        mine = mine._replace(rows_B=jnp.where(busy, mine.rows_B, -1), bias_NTS=place.bias_NTS)
        y_BTD, new, aux = stage(x_BTD, mine, number, caches)
        caches = jax.tree.map(lambda new, old: jnp.where(busy, new, old), new, caches)
        return (_to_next(y_BTD), caches), (y_BTD, aux)

    start = vary(jnp.zeros_like(x_MBTD[0]), varying(x_MBTD) | set(mesh_axes("layers")))
    (_, caches), (ys, aux) = jax.lax.scan(tick, (start, caches), jnp.arange(schedule.num_ticks, dtype=jnp.int32))
    last = [schedule.start(m, schedule.rounds - 1) + schedule.stages - 1 for m in range(M)]
    done = jnp.where(me == schedule.stages - 1, ys[jnp.array(last)], 0)
    y_BTD = sum_into(done.reshape(-1, *done.shape[2:]), "layers", 0, "batch")
    return y_BTD, caches, all_sum(jax.tree.map(lambda x: jnp.sum(x, axis=0), aux), "layers")


def _to_next(x: Array) -> Array:
    """From each device of the pipeline to the one after it, from the last to the first."""
    (axis,) = mesh_axes("layers")
    size = jax.sharding.get_abstract_mesh().shape[axis]
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])
