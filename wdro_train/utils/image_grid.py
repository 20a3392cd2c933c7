"""Pictures of what an attack does: images, adversarial images, and their difference."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor


def draw_pairs(x: Tensor, x_adv: Tensor, y: Tensor, clean: Tensor, adv: Tensor, title: str) -> Figure:
    """A figure of three rows: clean images, adversarial images, their difference.

    The differences of all columns are divided by the largest one and shifted from [-1, 1] to [0, 1]: grey is no change.
    Labels of wrong predictions are red.

    Args:
        x: Clean images in [0, 1], shape [k, C, H, W].
        x_adv: Adversarial images, same shape.
        y: Labels, shape [k].
        clean: Predictions on x, shape [k].
        adv: Predictions on x_adv, shape [k].
        title: Stands above the figure.
    """
    figure = Figure(figsize=(1.3 * len(x) + 0.4, 4.6), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    change = x_adv.float() - x.float()
    largest = change.abs().amax().clamp_min(torch.finfo(change.dtype).tiny)
    rows = (x.float(), x_adv.float(), (change / largest + 1) / 2)
    for column in range(len(x)):
        labels = (f"label {y[column]}\nsays {clean[column]}", f"says {adv[column]}", "change")
        right = (clean[column] == y[column], adv[column] == y[column], True)
        for row, (images, label, good) in enumerate(zip(rows, labels, right, strict=True)):
            ax = axes[row][column]
            picture = images[column].permute(1, 2, 0).squeeze(-1).numpy()
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
            ax.set_title(label, fontsize=8, color="black" if good else "crimson")
            ax.axis("off")
    figure.suptitle(title, fontsize=9)
    return figure
