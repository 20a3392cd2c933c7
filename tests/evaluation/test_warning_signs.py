"""Each alarm goes off on a network with the defect, and stays silent on a sound one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference_images, reference_network
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.evaluation import warning_signs
from wdro_train.evaluation.autoattack import brought_inside, run_reference_attack
from wdro_train.evaluation.certified_curve import certified_curve, make_certificate
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order import FirstOrderRow, RowWithWorstCase, first_order_rows
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.metrics.functional import first_order_quantities
from wdro_train.models import ExpectedLogits
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

BALL = WassersteinBall(2, math.inf, 0.1)


class Quantised(nn.Module):
    """Sees only black and white: no gradient anywhere, and easily fooled by chance."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x > 0.5).to(x.dtype))


class Noisy(nn.Module):
    """Adds noise to every look."""

    def __init__(self, model, sigma=0.3):
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x):
        return self.model(x + self.sigma * torch.randn_like(x))


class Rooted(nn.Module):
    """A square root somewhere in the preprocessing: its slope at black pixels is infinite."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.sqrt() ** 2)


class Shattered(nn.Module):
    """Wrinkles far below what the network sees turn the sign of every other gradient."""

    def __init__(self, model, size=0.01, waves=150.0):
        super().__init__()
        self.model, self.size, self.waves = model, size, waves

    def forward(self, x):
        return self.model(x + self.size * torch.sin(self.waves * x))


class Constant(nn.Module):
    """Always class 9."""

    def forward(self, x):
        nine = nn.functional.one_hot(torch.full((len(x),), 9), 10).to(x.dtype)
        return 5 * nine + 0 * x.flatten(1).sum(1, keepdim=True)


def engine(model, folder, n=60):
    x, y = reference_images()
    return Engine(model, list(zip(x[:n].split(30), y[:n].split(30), strict=True)), PieceStore(folder, {}))


def found(model, folder, steps=8):
    return find_distances(engine(model, folder), MinimalDistance(norm=math.inf, steps=steps))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return found(reference_network("adversarial"), tmp_path_factory.mktemp("sound"))


def test_a_sound_network_raises_nothing(sound):
    curve = sound.curve
    silent = [
        warning_signs.zero_gradients(sound),
        warning_signs.nonfinite_gradients(sound),
        warning_signs.never_flipped(sound),
    ]
    silent += [warning_signs.cheaper_elsewhere(sound, curve, 2, 0.1)]
    silent += [warning_signs.randomness(reference_network("adversarial"), reference_images()[0][:20])]
    assert silent == [None] * 5


def test_masked_gradients_are_seen(tmp_path):
    masked = found(Quantised(reference_network("standard")), tmp_path)
    alarm = warning_signs.zero_gradients(masked)
    assert alarm.figure == 1.0
    assert "100.0%" in alarm.text
    assert warning_signs.never_flipped(masked).figure > 0.5


def test_nan_gradients_are_counted(tmp_path):
    rooted = found(Rooted(reference_network("adversarial")), tmp_path, steps=8)
    assert warning_signs.nonfinite_gradients(rooted).figure == 8 * rooted.correct.sum()
    assert warning_signs.zero_gradients(rooted).figure == 1.0
    assert np.isinf(rooted.distances[rooted.correct]).all()
    assert "distances.effort=publish" in warning_signs.never_flipped(rooted).text


def test_a_constant_network_is_never_flipped(tmp_path):
    constant = found(Constant(), tmp_path)
    assert warning_signs.never_flipped(constant).figure == pytest.approx(constant.correct.mean())


def test_random_output_is_seen_and_expectation_calms_it():
    x, _ = reference_images()
    noisy = Noisy(reference_network("standard")).eval()
    torch.manual_seed(0)
    one = warning_signs.randomness(noisy, x[:50]).figure
    many = warning_signs.randomness(ExpectedLogits(noisy, 64), x[:50]).figure
    assert many < one / 3
    assert "judge it with expectation=20" in warning_signs.randomness(noisy, x[:50]).text
    assert "raise expectation=64" in warning_signs.randomness(ExpectedLogits(noisy, 64), x[:50]).text
    with pytest.raises(UserError, match="expectation=0"):
        ExpectedLogits(noisy, 0)


def test_cheaper_flips_elsewhere_are_seen(sound):
    better = RobustnessCurve(sound.distances / 2)
    assert warning_signs.cheaper_elsewhere(sound, better, 2, 0.05).figure > 0.01


@pytest.mark.slow
def test_gradients_that_mislead_make_the_stronger_attack_worse(tmp_path):
    def rows(model, name):
        grid = {"losses": ["ce"], "orders": [2.0, math.inf], "deltas": [0.1], "steps": 20}
        return first_order_rows(engine(model, tmp_path / name, n=120), norm=math.inf, box=True, **grid)

    honest = rows(reference_network("adversarial"), "honest")
    # Under W_2 the cross-entropy is raised further on images that are wrong already: no sign of anything.
    assert honest[0].pgd_acc > honest[0].quantities.fgsm_acc + 0.01
    assert warning_signs.stronger_does_worse(honest) is None
    alarm = warning_signs.stronger_does_worse(rows(Shattered(reference_network("adversarial")), "masked"))
    assert alarm.figure > 0.02
    assert "W_inf" in alarm.text


def row(pgd_acc=0.4, v_q=-0.35):
    """ReDLR: W(0) = 0, V(0) = -0.5, Q_delta(S) = 0.5; R^l = 1 - |V(0) - E_Q[J]| / |V(0)|, which is -v_q / 0.5 here."""
    means = {"v0": -0.5, "w0": 0.0, "v_q": v_q, "upsilon": 0.0, "delta": 0.1}
    quantities = first_order_quantities(**means, clean_acc=1.0, fgsm_acc=0.5, fgsm_spent=0.1)
    return FirstOrderRow("redlr", BALL, 1, quantities, v_pgd=v_q, pgd_acc=pgd_acc, ratio_pgd=pgd_acc, flips=np.zeros(1))


def test_w_pgd_that_leaves_more_than_one_step_is_seen():
    assert warning_signs.stronger_does_worse([row()]) is None
    assert warning_signs.stronger_does_worse([]) is None
    assert warning_signs.stronger_does_worse([row(), row(pgd_acc=0.6)]).figure == pytest.approx(0.1)


def test_an_asymptotic_bound_above_the_ratio_is_seen():
    below, above = (RowWithWorstCase(row(v_q=v_q), worst_acc=0.8, ratio=0.8) for v_q in (-0.35, -0.45))
    assert warning_signs.bound_above_ratio([below]) is None
    assert warning_signs.bound_above_ratio([]) is None
    assert warning_signs.bound_above_ratio([below, above]).figure == pytest.approx(0.1)


@pytest.mark.slow
def test_black_box_beats_white_box_on_masked_gradients(tmp_path):
    pytest.importorskip("pyautoattack", reason="the reference attacks are an extra")
    masked = engine(Quantised(reference_network("standard")), tmp_path)
    white = find_distances(masked, MinimalDistance(norm=math.inf, steps=4)).curve
    ball = WassersteinBall(math.inf, math.inf, 0.3)
    square = run_reference_attack(masked, ball, attacks=["square"], name="Square", batches=1)
    assert len(square.flips) == 30
    assert (square.flips[np.isfinite(square.flips)] <= 0.3).all()
    assert warning_signs.black_box_wins(white, square.flips.tolist(), 0.3).figure > 0.05
    stronger = replace(square, accuracy=white.accuracy(0.3, math.inf) - 0.1)
    assert warning_signs.peer_wins(white, stronger).figure > 0.09


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    s=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
    delta=st.floats(1e-3, 2),
    off=st.floats(-1e-5, 1e-5),
)
def test_points_of_other_programs_are_brought_inside(seed, s, delta, off):
    """By rounding beyond the radius they are no flips at the radius; what is inside stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 1, 4, 4, generator=generator)
    u = torch.randn(5, 1, 4, 4, generator=generator)
    ball = WassersteinBall(math.inf, s, delta)
    points = x + u * per_image((1 + off) * delta / ball.ground.distances(u), u)
    found = brought_inside(ball, x, points)
    assert (ball.ground.distances(found - x) <= delta).all()
    assert ((found >= 0) & (found <= 1)).all()
    clamped = points.clamp(0, 1)
    stay = ball.ground.distances(clamped - x) <= delta
    assert torch.equal(found[stay], clamped[stay])
    assert (found - clamped).abs().max() <= 3e-5 * max(delta, 1)


@pytest.mark.slow
def test_curve_reaches_the_reference_attack(tmp_path):
    """Flips of the reference attack count at its own radius, and the curve needs none of them."""
    pytest.importorskip("pyautoattack", reason="the reference attacks are an extra")
    ours = engine(reference_network("adversarial"), tmp_path)
    curve = find_distances(ours, MinimalDistance(norm=math.inf, steps=30)).curve
    apgd = run_reference_attack(ours, WassersteinBall(math.inf, math.inf, 0.1), attacks=["apgd-ce"], name="APGD")
    assert abs(apgd.accuracy - RobustnessCurve(apgd.flips).accuracy(0.1, math.inf)) < 1e-9
    assert curve.accuracy(0.1, math.inf) <= apgd.accuracy + 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("method", "norm"), [("ibp", math.inf), ("crown", 2.0), ("smoothing", 2.0)])
def test_certified_curve_stays_below_the_attack(tmp_path, method, norm):
    ours = engine(reference_network("adversarial"), tmp_path, n=4)
    settings = {"images": 4, "sigma": 0.25, "samples": 200, "alpha": 0.01, "batch_size": 256}
    sure = certified_curve(ours, make_certificate(method, norm=norm, **settings), method)
    assert sure.level == (1.0 if method != "smoothing" else pytest.approx(0.99))
    assert ("smoothed" in sure.about) == (method == "smoothing")
    if method != "smoothing":  # which speaks of another network
        attack = find_distances(ours, MinimalDistance(norm=norm, steps=10))
        assert (sure.curve.distances <= attack.distances).all()
    assert sure.curve.accuracy(0.01, 2) > 0


def test_radii_that_nothing_would_try_are_refused():
    settings = {"images": 1, "sigma": 0.1, "samples": 10, "alpha": 0.1, "batch_size": 10, "norm": 2.0}
    for method in ("lipschitz", "smoothing"):
        with pytest.raises(UserError, match=f"certificate.radii is for relaxations, .* not for {method}"):
            make_certificate(method, **settings, radii=[0.1])
        assert make_certificate(method, **settings).norm == 2
    assert make_certificate("crown", **settings, radii=[0.1]).norm == 2


@pytest.mark.parametrize(
    ("method", "norm", "says"),
    [("magic", 2.0, "choose ibp, crown_ibp, crown"), ("smoothing", math.inf, "certifies the l_2 norm")],
)
def test_certificates_that_do_not_exist(method, norm, says):
    with pytest.raises(UserError, match=says):
        make_certificate(method, norm=norm, images=1, sigma=0.1, samples=10, alpha=0.1, batch_size=10)
