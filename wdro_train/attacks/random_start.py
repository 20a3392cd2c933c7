"""Where an attack with a random start begins: noise inside the ball, the same on any number of ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import move
from wdro_train.utils.distributed import Reducer

# Rows of noise are drawn in whole blocks. On a CPU torch draws normal numbers in groups of 16 and an incomplete last
# group anew, so that otherwise the noise of an image would depend on how many images are drawn after it.
_NOISE_BLOCK = 64


def random_start(ball: WassersteinBall, x: Tensor, reducer: Reducer, generator: torch.Generator | None) -> Tensor:
    """Images plus noise that moves each of them by at most delta, which is inside the W_p ball for every p.

    s = inf: uniform in the cube of half-width delta. Otherwise a Gaussian direction, scaled to an s-norm of
    delta U^(1/n) with U uniform in [0, 1] and n the number of pixels. The noise of the whole global batch is drawn on
    every rank, and a rank takes the rows rank, rank + world_size, ..., which is how a distributed sampler deals out a
    batch: an image gets the same noise on any number of ranks.

    Args:
        ball: Gives the norm and the radius.
        x: This rank's images, shape [B, ...].
        reducer: Gives rank and number of ranks.
        generator: Seeded alike on all ranks, on the device of x.

    Returns:
        Images in [0, 1], same shape as x.
    """
    world, rank = reducer.world_size, reducer.rank
    size = x[0].numel()
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
