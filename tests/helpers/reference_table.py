"""`python tests/helpers/reference_table.py`: worst-case accuracy of the reference network, as the README shows it."""

import math

from oracles import reference_images, reference_network, reference_records

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils import tables

if __name__ == "__main__":
    model, (x, y) = reference_network("adversarial"), reference_images()
    rows = []
    for norm, name, deltas in ((math.inf, "l_inf", (0.02, 0.05, 0.1)), (2.0, "l_2", (0.25, 0.5, 1.0))):
        curve = RobustnessCurve(MinimalDistance(norm=norm)(model, x, y).distances.numpy())
        strong = MinimalDistance(norm=norm, steps=50, restarts=2, targets=3)(model, x, y)
        best = RobustnessCurve.pool([curve.distances, strong.distances.numpy()])
        for delta in deltas:
            (record,) = (
                r["wpgd50_min_accuracy"]
                for r in reference_records("adversarial", "attacks")
                if (r["loss"], float(r["p"]), float(r["norm"]), r["delta"]) == ("ReDLR", 2, norm, delta)
            )
            pgd = [
                correct(
                    WPGD(p=2, norm=norm, delta=delta, loss=loss, keep="cheapest", steps=50, random_start=False)(
                        model, x, y
                    ).adv_logits,
                    y,
                )
                for loss in ("redlr", "ce")
            ]
            shares = [record, *(p.double().mean().item() for p in pgd), curve.accuracy(delta, 2)]
            shares += [best.accuracy(delta, 2), curve.accuracy(delta, 1), curve.accuracy(delta, math.inf)]
            rows.append([f"{name} {delta:g}", *(f"{100 * share:.1f}" for share in shares)])
    names = ["2023 W-PGD", "W-PGD ReDLR", "W-PGD CE", "knapsack W_2", "more effort", "knapsack W_1", "knapsack W_inf"]
    tables.show("accuracy left (%), 500 images", ["ball", *names], rows)
