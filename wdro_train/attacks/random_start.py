"""Where an attack with a random start begins: noise inside the ball, the same on any number of ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import move
from wdro_train.utils.distributed import Reducer

_NOISE_BLOCK = 64


def random_start(ball: WassersteinBall, x: Tensor, reducer: Reducer, generator: torch.Generator | None) -> Tensor:
    """Uniform noise of size delta: every image inside its own ball of radius delta, so inside every W_p ball.

    s = inf: uniform in the cube. Otherwise a Gaussian direction of s-norm delta U^(1/n). The noise of the whole
    global batch is drawn on every rank and rows rank, rank + world_size, ... are taken, which is how a
    distributed sampler deals out a batch: the images get the same noise on any number of ranks.

    Args:
        ball: Gives norm and radius.
        x: This rank's images, shape [B, ...].
        reducer: Gives rank and number of ranks.
        generator: Seeded alike on all ranks, on the device of x.

    Returns:
        Images in [0, 1], same shape as x.
    """
    world, rank = reducer.world_size, reducer.rank
    size = x[0].numel()
    # Whole blocks: what is drawn for an image must not change with the padding that fills up the ranks.
    rows = -(-len(x) * world // _NOISE_BLOCK) * _NOISE_BLOCK
    noise = x.new_empty(rows, size)
    if math.isinf(ball.norm):
        noise.uniform_(-ball.delta, ball.delta, generator=generator)
        u = noise[rank::world][: len(x)]
    else:
        noise.normal_(generator=generator)
        length = x.new_empty(rows).uniform_(generator=generator)[rank::world][: len(x)]
        direction = noise[rank::world][: len(x)]
        radii = ball.delta * length.double().pow(1 / size)
        u = direction * (radii / ball.ground.distances(direction)).to(direction)[:, None]
    return move(x, u.view_as(x))
