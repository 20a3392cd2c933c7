"""Upsilon and the first-order worst case Q_delta of a whole set, for many orders and radii at once.

Upsilon and the map of Q_delta belong to the set as one distribution (theory, section 2). So there are two passes: one
takes the gradient norms of all images, the other moves every image with the Upsilon of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wdro_train.attacks.ascent import slope_in_box
from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.w_fgsm import push_forward
from wdro_train.evaluation.engine import Engine, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.metrics.functional import FirstOrderQuantities, first_order_quantities
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import GroundNorm, conjugate
from wdro_train.theory.losses import correct, resolve_loss
from wdro_train.theory.power_mean import moment, power_mean


@dataclass(frozen=True)
class FirstOrderGrid:
    """What W-FGSM does to a whole set under one loss, on a grid of orders and radii.

    Attributes:
        v0: V(0) = E_P[J].
        w0: W(0) = E_P[J | S^c]; NaN if nothing is misclassified.
        clean_acc: A = P(S).
        upsilon: Upsilon for each order.
        v_q: E_{Q_delta}[J] for each (order, radius).
        fgsm_acc: Q_delta(S) for each (order, radius).
        spent: (E ||x' - x||_s^p)^(1/p) for each (order, radius).
    """

    v0: float
    w0: float
    clean_acc: float
    upsilon: dict[float, float]
    v_q: dict[tuple[float, float], float]
    fgsm_acc: dict[tuple[float, float], float]
    spent: dict[tuple[float, float], float]

    def quantities(self, p: float, delta: float) -> FirstOrderQuantities:
        """All of the poster's quantities at one point of the grid.

        Args:
            p: One of the orders.
            delta: One of the radii.
        """
        return first_order_quantities(
            v0=self.v0,
            w0=self.w0,
            v_q=self.v_q[p, delta],
            upsilon=self.upsilon[p],
            delta=delta,
            clean_acc=self.clean_acc,
            fgsm_acc=self.fgsm_acc[p, delta],
            fgsm_spent=self.spent[p, delta],
        )


def first_order_grid(
    engine: Engine, *, norm: float, loss: str, orders: list[float], deltas: list[float], box: bool = True
) -> FirstOrderGrid:
    """W-FGSM of the whole set on a grid of orders and radii.

    It costs a gradient pass for Upsilon, one more to move the images, and a forward pass for each point of the grid.

    Args:
        engine: The set and the network.
        norm: Ground norm.
        loss: `ce`, `dlr` or `redlr`.
        orders: Wasserstein orders p > 1.
        deltas: Radii.
        box: True uses the free gradient and spends in full inside [0, 1]^n; False is the paper's formula.
    """
    value = resolve_loss(loss)

    ground = GroundNorm(norm)

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with attack_mode(engine.model):
            found = input_gradient(engine.model, x, y, value)
        return found.losses, correct(found.logits, y), slope_in_box(found.gradient, x, box=box)

    def slopes(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        losses, right, slope = gradient(x, y)
        return {
            "dual_norms": ground.dual_norms(slope).cpu().numpy(),
            "losses": losses.double().cpu().numpy(),
            "right": right.cpu().numpy(),
        }

    settings = {"norm": norm, "loss": value, "box": box}
    clean = engine.run(Stage(f"slopes_{loss}", settings, slopes), ("dual_norms", "losses", "right"))
    duals = torch.from_numpy(clean["dual_norms"])
    points = [(p, delta) for p in orders for delta in deltas]
    balls = [WassersteinBall(p, norm, delta) for p, delta in points]
    totals = {p: moment(duals, None, conjugate(p)) for p in orders}

    def moved(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        _, _, slope = gradient(x, y)
        dual_norms = ground.dual_norms(slope)
        losses, right, distances = [], [], []
        for ball in balls:
            upsilon = power_mean(totals[ball.p], ball.q).to(x.device)
            x_adv = push_forward(ball, x, slope, dual_norms, upsilon, box=box)
            with attack_mode(engine.model), torch.no_grad():
                logits = forward(engine.model, x_adv)
            losses.append(value(logits, y).double())
            right.append(correct(logits, y))
            distances.append(ground.distances(x_adv - x))
        return {
            "losses": torch.stack(losses).cpu().numpy(),
            "right": torch.stack(right).cpu().numpy(),
            "distances": torch.stack(distances).cpu().numpy(),
        }

    # Upsilon is the whole set's, so a batch's images move differently if another batch changes.
    settings |= {"points": points, "totals": totals}
    joined = engine.run(Stage(f"grid_{loss}", settings, moved), ("losses", "right", "distances"))
    wrong = ~clean["right"]
    spent = {
        point: float(ball.spent(torch.from_numpy(joined["distances"][k])))
        for k, (point, ball) in enumerate(zip(points, balls, strict=True))
    }
    return FirstOrderGrid(
        v0=float(clean["losses"].mean()),
        w0=float(clean["losses"][wrong].mean()) if wrong.any() else float("nan"),
        clean_acc=float(clean["right"].mean()),
        upsilon={p: float(power_mean(totals[p], conjugate(p))) for p in orders},
        v_q={point: float(joined["losses"][k].mean()) for k, point in enumerate(points)},
        fgsm_acc={point: float(joined["right"][k].mean()) for k, point in enumerate(points)},
        spent=spent,
    )
