"""`python tests/helpers/reference_benchmark.py`: MinimalDistance, its peers and AutoAttack on the reference network."""

import math

from oracles import reference_images, reference_network

from wdro_train.theory.ball import WassersteinBall
from wdro_train.tools.attack_outcomes import header, rows
from wdro_train.tools.compare_attacks import compare
from wdro_train.utils import tables

if __name__ == "__main__":
    model, (x, y) = reference_network("adversarial"), reference_images()
    for norm, name, delta in ((math.inf, "l_inf", 0.1), (2.0, "l_2", 1.0)):
        ball = WassersteinBall(2, norm, delta)
        found = compare(model, x, y, ball, with_autoattack=True)
        tables.show(
            f"{len(y)} images, {name}, radius {delta:g}",
            header(ball),
            rows(found.outcomes, ball),
            "AutoAttack and W-PGD aim at the radius alone; time relative to MinimalDistance",
        )
