"""Exact distances of tiny networks, by enumeration of their linear regions."""

import itertools
import math

import numpy as np
from scipy.optimize import linprog


def nearest_flip(net, x, label, s):
    """The exact distance in one hidden layer and two inputs: a linear program for every activation pattern and rival.

    Variables: the point x' (2), the displacement's absolute values (2), and their maximum or sum, which is minimised.
    """
    (w1, b1), (w2, b2) = ((p.detach().double().numpy() for p in layer.parameters()) for layer in (net[0], net[2]))
    image = x.double().numpy()
    best = math.inf
    size = [[1, 0, -1, 0, 0], [0, 1, 0, -1, 0], [-1, 0, -1, 0, 0], [0, -1, 0, -1, 0]]
    total = [[0, 0, 1, 1, -1]] if s == 1 else [[0, 0, 1, 0, -1], [0, 0, 0, 1, -1]]
    for pattern in itertools.product([0.0, 1.0], repeat=len(b1)):
        on = np.array(pattern)
        sign = (1 - 2 * on)[:, None]  # on: z >= 0
        rows, limits = sign * w1, -sign[:, 0] * b1
        for rival in set(range(len(b2))) - {label}:
            gap = (w2[label] - w2[rival]) * on
            flip, bound = gap @ w1, -(gap @ b1 + b2[label] - b2[rival])
            constraints = np.vstack([np.hstack([np.vstack([rows, flip]), np.zeros((len(b1) + 1, 3))]), size, total])
            right = np.concatenate([limits, [bound], image, -image, np.zeros(len(total))])
            bounds = [(0, 1), (0, 1)] + [(0, None)] * 3
            found = linprog([0, 0, 0, 0, 1], A_ub=constraints, b_ub=right, bounds=bounds)
            best = min(best, found.fun if found.success else math.inf)
    return best
