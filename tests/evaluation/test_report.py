"""What evaluate.py leaves behind: report.json against its schema, figures, and report.html in a real browser."""

import contextlib
import copy
import http.server
import importlib.resources
import json
import math
import os
import re
import shutil
import subprocess
import threading
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import NotRequired, get_origin, get_type_hints

import jsonschema
import matplotlib.image
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from in_process import only_png
from matplotlib.backends.backend_agg import FigureCanvasAgg
from oracles import reference_images, reference_network
from shell import ROOT, digits, run, wandb_history

from wdro_train.attacks import MinimalDistance
from wdro_train.config.build import plain
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.certified_curve import CertifiedCurve
from wdro_train.evaluation.distances import FoundDistances, find_distances, flipped_points
from wdro_train.evaluation.engine import Engine, Place
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.report import (
    fields,
    html,
    markdown,
    matplotlib_figures,
    plotly_figures,
    schema,
    search,
    terminal,
)
from wdro_train.evaluation.report.curves import curve_rows
from wdro_train.evaluation.report.image_pairs import flipped_pairs
from wdro_train.evaluation.report.intervals import differences
from wdro_train.evaluation.report.publish import scalars
from wdro_train.evaluation.report.sentences import effort
from wdro_train.evaluation.run import evaluate
from wdro_train.evaluation.warning_signs import certificate_contradicted
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.training.build import build_module
from wdro_train.training.module import CONFIG_KEY
from wdro_train.utils.files import as_json

pytestmark = pytest.mark.slow

SCHEMA = json.loads((importlib.resources.files("wdro_train.evaluation.report") / "schema.json").read_text())
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the path")


def configuration(name, *overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def checkpoint(folder, name, steps):
    """A small network that has looked at some digits, saved as train.py saves it."""
    cfg = configuration("train", "name=quick", "model.width=4", f"run_dir={folder}", "logger=none", "callbacks={}")
    torch.manual_seed(0)
    module, (x, y) = build_module(cfg), digits(400)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module.model(x), y).backward()
        optimizer.step()
    torch.save({"state_dict": module.state_dict(), CONFIG_KEY: plain(cfg)}, folder / f"{name}.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two real evaluations: `alone` of one network, `both` of two."""
    folder = tmp_path_factory.mktemp("reports")
    for name, steps in (("first", 15), ("second_$net", 40)):
        checkpoint(folder, name, steps)
    shared = ["limit=70", "batch_size=32", "accelerator=cpu", "poster.pgd_steps=5", f"store={folder}/store"]
    shared += ["pictures=4", "distances.steps=10"]
    for name, paths in (("alone", "first.ckpt"), ("both", "first.ckpt,second_$net.ckpt")):
        cfg = configuration("evaluate", *shared, f"run_dir={folder / name}")
        cfg.ckpt_path = [str(folder / path) for path in paths.split(",")]
        with contextlib.nullcontext() if name == "alone" else only_png():
            evaluate(cfg)
    return folder


@pytest.fixture(scope="module")
def certified_folder(tmp_path_factory):
    """A real evaluation of two networks with a certificate, one of them trained a little."""
    folder = tmp_path_factory.mktemp("certified")
    for name, steps in (("first", 30), ("second", 60)):
        checkpoint(folder, name, steps)
    shared = ["limit=70", "accelerator=cpu", f"store={folder}/store", "poster=null", "pictures=0"]
    shared += ["distances.steps=10", "attack.delta=5/255", "labels=[ours,baseline]"]
    cfg = configuration("evaluate", *shared, "certificate.method=crown", f"run_dir={folder}")
    cfg.ckpt_path = [str(folder / f"{name}.ckpt") for name in ("first", "second")]
    with only_png():
        evaluate(cfg)
    return folder


@pytest.fixture
def certified(certified_folder):
    return json.loads((certified_folder / "report.json").read_text())


@pytest.fixture(params=["alone", "both"])
def report(folder, request):
    return json.loads((folder / request.param / "report.json").read_text())


@pytest.fixture
def both(folder):
    return json.loads((folder / "both" / "report.json").read_text())


@pytest.fixture
def enclosed(folder):
    """The report of one network, with certified curves that belong to half its distances."""
    report = json.loads((folder / "alone" / "report.json").read_text())
    model = report["models"][0]
    distances = np.asarray([float(d) for d in model["distances"]["values"]])
    found, sure = RobustnessCurve(distances), RobustnessCurve(distances / 2)
    orders = [float(row["p"]) for row in model["curves"]]
    deltas = model["curves"][0]["deltas"]
    rows = curve_rows(found, orders, deltas, found.band(0.05), alone=found, certified=sure)
    model["curves"] = as_json(rows)
    about = {"method": "crown", "level": 1.0, "about": "the network itself", "encloses": True}
    model["certificate"] = about | {"clean_accuracy": sure.clean_accuracy, "radii": as_json(sure.distances.tolist())}
    worst = model["worst_case"]
    model["interval"]["certified"] = sure.accuracy(worst["delta"], float(worst["p"]))
    return report


# report.json


def invalid(report):
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(report)]


def test_reports_follow_the_schema(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == schema.SCHEMA == report["schema"]
    assert not invalid(report)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(surprise=1),
        lambda r: r.pop("git_revision"),
        lambda r: r.update(schema=1),
        lambda r: r["models"][0]["curves"][0]["accuracy"].__setitem__(0, 1.5),
        lambda r: r["models"][0]["worst_case"]["movers"][0].pop("distance"),
        lambda r: r["models"][0]["distances"]["values"].__setitem__(0, "nan"),
        lambda r: r["models"][0]["poster"][0].update(loss="hinge"),
    ],
)
def test_schema_refuses(spoil, report):
    spoil(report)
    assert invalid(report)


def test_certified_report_follows_the_schema(enclosed):
    assert not invalid(enclosed)
    assert "lies between the two" in page_of(enclosed)
    of_another(enclosed["models"][0])
    assert "lies between the two" not in page_of(enclosed)


def of_another(model):
    """Make the certificate one of the smoothed classifier, which the attack's curve is not about."""
    model["certificate"] |= {"method": "smoothing", "about": "the smoothed classifier", "encloses": False}
    model["interval"]["certified"] = None


def test_the_terminal_says_between_which_accuracies_the_truth_lies(enclosed, capsys):
    model = enclosed["models"][0]
    worst = model["worst_case"]
    least = RobustnessCurve(model["certificate"]["radii"]).accuracy(worst["delta"], float(worst["p"]))
    terminal.show(enclosed, [])
    expected = f"lies between {fields.at_least(least)} (crown, certified) and "
    expected += f"{fields.at_most(worst['accuracy'])} (attack, {effort(model)})"
    assert expected in capsys.readouterr().out
    assert expected in Tags(page_of(enclosed)).text
    of_another(model)
    terminal.show(enclosed, [])
    assert "lies between" not in capsys.readouterr().out
    contradict(model)
    terminal.show(enclosed, [])
    printed = capsys.readouterr().out
    assert "lies between" not in printed
    assert "does not enclose it, as an attack contradicts it" in printed
    assert "(crown, level 1), contradicted by an attack" in printed
    assert "less, at" not in printed


def contradict(model):
    """Let an attack flip an image nearer than it is certified."""
    model["certificate"] |= {"method": "crown", "about": "the network itself", "encloses": False}
    model["interval"]["certified"] = None
    for row in model["curves"]:
        row["certified_lower"] = None


def test_several_networks_share_the_error_probability(folder, both):
    """Their bands hold jointly, so each gets alpha / 2; the difference of any two curves is within twice the band."""
    alone = json.loads((folder / "alone" / "report.json").read_text())["models"][0]["band"]
    assert (alone["networks"], alone["width"]) == (1, pytest.approx(math.sqrt(math.log(2 / 0.05) / 140)))
    for model in both["models"]:
        assert model["band"]["networks"] == 2
        assert model["band"]["width"] == pytest.approx(math.sqrt(math.log(4 / 0.05) / 140))
    assert both["differences"]["width"] == pytest.approx(2 * math.sqrt(math.log(4 / 0.05) / 140))


def test_differences_of_networks_without_certificate_are_of_the_attacks_alone(both):
    (row,) = both["differences"]["rows"]
    first, second = both["models"]
    assert (row["first"], row["second"]) == (first["name"], second["name"])
    assert first["images_digest"] == second["images_digest"]
    assert (row["attacked"], row["attacked_low"]) == (0, None)  # attacks leave nothing of either, so nothing varies
    assert row["enclosed_low"] is row["enclosed_high"] is row["lower_end"] is row["upper_end"] is None
    assert not both["differences"]["left_out"]


def test_certified_networks_are_enclosed_and_compared(certified, capsys):
    """A real evaluation of two certified networks: interval, ratio, ends and differences from the radii in the file."""
    sure, found, ball = [], [], (5 / 255, 2)
    for model in certified["models"]:
        radii, distances = (
            np.asarray([float(value) for value in values])
            for values in (model["certificate"]["radii"], model["distances"]["values"])
        )
        assert (radii <= distances * (1 + 1e-6)).all()
        sure, found = [*sure, RobustnessCurve(radii)], [*found, RobustnessCurve(distances)]
        low, high = (curve.accuracy(*ball) for curve in (sure[-1], found[-1]))
        block, w = model["interval"], math.sqrt(math.log(4 / 0.05) / 140)
        assert (block["certified"], block["attacked"]) == pytest.approx((low, high))
        assert (block["lower_end"], block["upper_end"]) == pytest.approx((max(0, low - w), min(1, high + w)), abs=0.01)
        assert block["ratio_lower_end"] == pytest.approx(max(0, low - w) / min(1, model["clean_accuracy"] + w))
        assert block["ratio_certified"] == pytest.approx(low / model["clean_accuracy"])
        assert model["certificate"]["encloses"]
    (row,) = certified["differences"]["rows"]
    enclosed = [
        sure[0].accuracy(*ball) - found[1].accuracy(*ball),
        found[0].accuracy(*ball) - sure[1].accuracy(*ball),
    ]
    assert [row["enclosed_low"], row["enclosed_high"]] == pytest.approx(enclosed)
    assert row["attacked_low"] < row["attacked"] < row["attacked_high"]
    assert row["lower_end"] < row["enclosed_low"] <= row["enclosed_high"] < row["upper_end"]
    terminal.show(certified, [])
    printed = capsys.readouterr().out
    for text in (printed, Tags(page_of(certified)).text, markdown.render(certified)):
        assert "ours − baseline" in text
        assert "W_2 5/255" in text
        assert f"{fields.at_least(certified['models'][0]['interval']['certified'])} (crown, certified)" in text
        assert fields.between(row["enclosed_low"], row["enclosed_high"]) in text


def test_networks_judged_on_other_images_are_not_compared():
    """The same number of images in another order, or of another set, is not a pair."""
    ball, d = WassersteinBall(2, math.inf, 0.1), np.linspace(0.05, 0.3, 40)

    def judged(images):
        found = FoundDistances(d, np.zeros(40, int), np.ones(40, bool), np.ones(40, int), 0, 0)
        return NetworkEvidence(ball, "all of them", images, found)

    three = [judged("one"), judged("other"), judged("one")]
    block = differences(three, ["a", "b", "c"], ball, 0.05)
    assert [(row["first"], row["second"]) for row in block["rows"]] == [("a", "c")]
    assert len(block["left_out"]) == 2
    assert block["left_out"][0].startswith("no difference between a and b: they were not judged on the same images")
    assert differences(three[:1], ["a"], ball, 0.05) is None


def test_a_contradicted_certificate_encloses_nothing():
    ball, d = WassersteinBall(2, math.inf, 0.1), np.linspace(0.05, 0.3, 40)
    found = FoundDistances(d, np.zeros(40, int), np.ones(40, bool), np.ones(40, int), 0, 0)
    sure = CertifiedCurve("ibp", 1.0, "the network itself", RobustnessCurve(d / 2))
    evidence = NetworkEvidence(ball, "all of them", "digest", found, certificate=sure)
    assert evidence.enclosure.accuracy(0.1, 2).low == sure.curve.accuracy(0.1, 2)
    wrong = replace(evidence, certificate=replace(sure, curve=RobustnessCurve(d * 1.01)))
    assert wrong.enclosure is wrong.enclosure_image_by_image is None
    assert wrong.contradicted
    assert not evidence.contradicted
    band = wrong.curve.band(0.05)
    for contradicted, lower in ((False, [max(0, sure.curve.accuracy(0.1, 2) - band.width)]), (True, None)):
        (row,) = curve_rows(
            wrong.curve, [2.0], [0.1], band, alone=wrong.curve, certified=sure.curve, contradicted=contradicted
        )
        assert row["certified_lower"] == lower
    other = replace(wrong, certificate=replace(wrong.certificate, about="the smoothed classifier"))
    assert other.enclosure is None
    assert certificate_contradicted(wrong.certificate, wrong.curve).figure == 40
    assert certificate_contradicted(sure, evidence.curve) is None
    assert certificate_contradicted(other.certificate, other.curve) is None
    assert certificate_contradicted(None, evidence.curve) is None


def test_an_area_is_drawn_only_where_the_truth_lies_in_it(enclosed):
    orders = len(enclosed["models"][0]["curves"])
    (axes,) = matplotlib_figures.robustness_curves(enclosed).axes
    assert len(axes.collections) == 3 * orders  # the band above, the area, the band below
    (plot,) = plotly_figures.robustness_curves(enclosed)
    assert sum(trace.get("fillcolor", "").endswith("55") for trace in plot["data"]) == orders
    of_another(enclosed["models"][0])
    (axes,) = matplotlib_figures.robustness_curves(enclosed).axes
    assert len(axes.collections) == 2 * orders
    (plot,) = plotly_figures.robustness_curves(enclosed)
    assert not any(trace.get("fillcolor", "").endswith("55") for trace in plot["data"])
    assert sum("of another classifier" in trace["name"] for trace in plot["data"]) == orders
    contradict(enclosed["models"][0])
    (axes,) = matplotlib_figures.robustness_curves(enclosed).axes
    assert len(axes.collections) == orders  # the band above the attack's curve alone
    assert sum("certified, encloses nothing" in line.get_label() for line in axes.lines) == orders
    (plot,) = plotly_figures.robustness_curves(enclosed)
    assert len(plot["data"]) == 3 * orders
    assert sum("certified, encloses nothing" in trace["name"] for trace in plot["data"]) == orders
    assert not invalid(enclosed)


def objects(content, path="report"):
    if isinstance(content, dict):
        if "properties" in content or content.get("type") == "object":
            yield path, content
        for key, entry in content.items():
            yield from objects(entry, f"{path}.{key}")
    elif isinstance(content, list):
        for entry in content:
            yield from objects(entry, path)


def test_schema_describes_every_key():
    found = dict(objects(SCHEMA))
    assert len(found) > 10
    for path, content in found.items():
        assert content.get("description"), path
        for key, entry in content.get("properties", {}).items():
            assert len(entry.get("description", "")) > 5, f"{path}.{key}"


BLOCKS = {
    "model": schema.ModelReport,
    "distances": schema.DistancesBlock,
    "histogram": schema.HistogramBlock,
    "convergence": schema.ConvergenceBlock,
    "round": schema.RoundBlock,
    "band": schema.BandBlock,
    "curve": schema.CurveBlock,
    "worst_case": schema.WorstCaseBlock,
    "mover": schema.MoverBlock,
    "passes": schema.PassesRow,
    "poster_row": schema.PosterRow,
    "certificate": schema.CertificateBlock,
    "interval": schema.IntervalBlock,
    "difference": schema.DifferenceRow,
    "differences": schema.DifferencesBlock,
    "peer": schema.PeerRow,
    "warning": schema.WarningBlock,
}


def test_types_have_the_shape_of_the_schema():
    definitions = SCHEMA["$defs"]
    assert BLOCKS.keys() == {name for name, one in definitions.items() if one.get("type") == "object"}
    pairs = [(SCHEMA, schema.Report), *((definitions[name], block) for name, block in BLOCKS.items())]
    pairs += [(SCHEMA["properties"]["threat"], schema.ThreatBlock)]
    pairs += [(definitions["model"]["properties"]["published"]["items"], schema.PublishedRow)]
    for described, block in pairs:
        kinds = get_type_hints(block, include_extras=True)
        assert kinds.keys() == described["properties"].keys(), block
        optional = {key for key, kind in kinds.items() if get_origin(kind) is NotRequired}
        assert kinds.keys() - optional == set(described["required"]), block


def test_scalars_of_several_models_keep_apart(both):
    found = scalars(both)
    for model in both["models"]:
        assert found[f"{model['name']}/clean_accuracy"] == model["clean_accuracy"]
        assert found[f"{model['name']}/curve/W_2/delta_0.1/accuracy"] == pytest.approx(model["worst_case"]["accuracy"])
    assert all(math.isfinite(value) for value in found.values())


# Pictures


def test_pictures_are_the_flips(tmp_path):
    model, (x, y) = reference_network("adversarial"), (part[:50] for part in reference_images())
    batches = list(zip(x.split(16), y.split(16), strict=True))
    engine, attack = Engine(model, batches, PieceStore(tmp_path, {})), MinimalDistance(norm=math.inf, steps=8)
    found = find_distances(engine, attack)
    first, *others = sorted(np.flatnonzero(found.distances > 0), key=lambda i: (i // 16 == 1, found.distances[i]))[:5]
    indices = [int(i) for i in (*others, first)]
    assert {i // 16 for i in indices} < {0, 2, 3}
    for needed in (0, 1):  # a piece that is lost is made again, unless it is not needed
        next(engine.store.folder.glob(f"distances-*/{needed:06d}-*")).unlink()
    pairs = flipped_pairs(engine, found, attack.ground, indices)
    assert [len(list(engine.store.folder.glob(f"distances-*/{k:06d}-*"))) for k in (0, 1)] == [1, 0]
    assert torch.equal(pairs.clean, x[indices])
    np.testing.assert_allclose(pairs.distances, found.distances[indices], rtol=1e-6)
    with torch.no_grad():
        logits, rivals = model(pairs.adversarial), torch.from_numpy(found.rivals[indices])
    assert (rivals != torch.from_numpy(found.labels[indices])).all()
    assert (logits.gather(1, rivals[:, None]).squeeze(1) > logits.amax(1) - 1e-3).all()  # on the boundary
    assert flipped_pairs(engine, found, attack.ground, []) is None


class _Coarse(torch.nn.Module):
    """Logits in steps of a half, with the gradients of what they are made from: flips end in exact ties."""

    def forward(self, x):
        logits = x.flatten(1) @ torch.eye(4)
        return logits + ((2 * logits).round() / 2 - logits).detach()


def test_a_tie_is_reported_under_the_rival(tmp_path):
    x, y = 0.4 * torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(30, dtype=torch.int64)
    x[:, 0, 0, 0] += 0.5
    engine, attack = Engine(_Coarse(), [(x, y)], PieceStore(tmp_path, {})), MinimalDistance(norm=math.inf, steps=8)
    found = find_distances(engine, attack)
    points = flipped_points(engine, found.stage, Place.of(0, x, y), x, y)
    moved = (found.distances > 0) & np.isfinite(found.distances)
    assert (_Coarse()(points).argmax(1).numpy() == 0)[moved].any()  # ties, and the label comes first
    assert (found.rivals[moved] > 0).all()
    assert (found.rivals[~moved & found.correct] == 0).all()


# Figures


def test_figures_are_written(folder, report):
    figures = folder / report["config"]["run_dir"] / "figures"
    files = {file.stem: file for file in figures.glob("*.png")}
    every_format = Path(report["config"]["run_dir"]).name == "alone"  # the others were drawn as PNG only
    for kind in ("pdf", "svg"):
        assert {file.stem for file in figures.glob(f"*.{kind}")} == (files.keys() if every_format else set())
    count = len(report["models"])
    movers = {"moved_first"} if count == 1 else {f"moved_first_{k + 1}" for k in range(count)}
    rounds = any(len(model["distances"]["convergence"]["rounds"]) > 1 for model in report["models"])
    further = {"convergence"} if rounds else set()
    assert set(files) == {"robustness_curves", "distances", "first_order", "ratios"} | movers | further
    for name, file in files.items():
        picture = matplotlib.image.imread(file)
        assert 300 < picture.shape[0] < 2500, name
        assert 500 < picture.shape[1] < 3000, name
        assert picture[..., :3].std() > 0.01, name


def with_rounds(report):
    """The report with the rounds of a search that went on."""
    report = copy.deepcopy(report)
    kinds = ("minimum norm", "from the flip, margin", "elimination of rivals, from the image")
    for k, model in enumerate(report["models"]):
        rounds = [
            {
                "kind": kind,
                "passes": 38.0 + 50 * i + k,
                "asked": 40,
                "improved": 3,
                "accuracy": 0.75 - 0.01 * i - 0.1 * k,
            }
            for i, kind in enumerate(kinds)
        ]
        model["distances"]["convergence"] = {"rounds": rounds, "capped": True}
    return report


def test_nothing_sticks_out(report, enclosed):
    for one in (report, enclosed, spoilt(report)):
        for draw in (
            matplotlib_figures.robustness_curves,
            matplotlib_figures.distance_histograms,
            matplotlib_figures.first_order,
            matplotlib_figures.ratios,
            matplotlib_figures.convergence,
        ):
            figure = draw(with_rounds(one))
            FigureCanvasAgg(figure).draw()  # and with it the layout
            box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02, draw.__name__


def test_convergence_is_drawn_round_by_round(report):
    """The lines of the file and of the page go through the rounds of the report; a single search has none."""
    report = with_rounds(report)
    (axes,) = matplotlib_figures.convergence(report).axes
    assert len(axes.get_lines()) == len(report["models"])
    page = html.render(report, [None] * len(report["models"]))
    assert page.count("Accuracy left against the passes of the search") == len(report["models"])
    for line, model in zip(axes.get_lines(), report["models"], strict=True):
        rounds = model["distances"]["convergence"]["rounds"]
        passes, accuracies = ([one[key] for one in rounds] for key in ("passes", "accuracy"))
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (passes, accuracies)
        (trace,) = plotly_figures.convergence(report, model)["data"]
        assert (trace["x"], trace["y"]) == (passes, accuracies)
        model["distances"]["convergence"] = {"rounds": rounds[:1], "capped": False}
        assert plotly_figures.convergence(report, model) is None
    assert "Accuracy left against" not in html.render(report, [None] * len(report["models"]))


def test_accuracies_of_the_search_are_not_rounded_down(both):
    """They are upper bounds: 0.411041 is written as 41.11 %."""
    model = with_rounds(both)["models"][0]
    for one in model["distances"]["convergence"]["rounds"]:
        one["accuracy"] = 0.411041
    assert search.convergence(model).count("41.11 %") == 2
    assert {row[-1] for row in search.convergence_rows(model)[1:]} == {"41.11 %"}


def test_curves_of_one_model_share_a_panel(enclosed):
    (axes,) = matplotlib_figures.robustness_curves(enclosed).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert len(lines) == 2 * len(enclosed["models"][0]["curves"])
    row = fields.curve_of(enclosed["models"][0], 2.0)
    attack, sure = lines["$W_{2}$"], lines["$W_{2}$, certified"]
    np.testing.assert_array_equal(attack.get_ydata(), row["accuracy"])
    np.testing.assert_array_equal(sure.get_ydata(), row["certified"])
    assert sure.get_linestyle() == "--"
    assert (sure.get_ydata() <= attack.get_ydata()).all()
    assert (sure.get_ydata() < attack.get_ydata()).any()
    top = max(np.concatenate([path.vertices[:, 1] for path in axes.collections[0].get_paths()]))
    assert top == pytest.approx(max(row["upper"]))


def test_curves_of_several_models_have_a_panel_an_order(both):
    axes = matplotlib_figures.robustness_curves(both).axes
    assert [ax.get_title() for ax in axes] == ["$W_{1}$", "$W_{1.5}$", "$W_{2}$", r"$W_\infty$"]
    assert all(len(ax.get_lines()) == 2 for ax in axes)


def test_first_order_line_has_slope_upsilon(report):
    losses = fields.losses(report)
    panels = matplotlib_figures.first_order(report).axes
    assert len(panels) == len(losses) * len(report["models"])
    for model, ours in zip(report["models"], np.reshape(panels, (-1, len(losses))), strict=True):
        for loss, ax in zip(losses, ours, strict=True):
            assert "box" in ax.get_title()
            rows = [row for row in model["poster"] if row["loss"] == loss]
            line, q, pgd = ax.get_lines()
            (x0, x1), (y0, y1) = line.get_data()
            assert (x0, y0) == (0, rows[0]["v0"])
            assert (y1 - y0) / (x1 - x0) == pytest.approx(rows[0]["upsilon"])
            assert list(q.get_ydata()[1:]) == [row["v_q"] for row in rows]
            assert list(pgd.get_ydata()[1:]) == [row["v_pgd"] for row in rows]


def test_free_upsilon_is_called_free(report):
    report["config"]["poster"]["box"] = False
    assert "free" in matplotlib_figures.first_order(report).axes[0].get_title()


@pytest.mark.parametrize("lower", [0.2, 0.95])
def test_lower_bound_above_the_ratio_is_ringed(report, lower):
    for model in report["models"]:
        for row in model["poster"]:
            row["ratio"], row["ratio_lower"] = 0.5, lower
    ringed = lower > 0.5
    for ax in matplotlib_figures.ratios(report).axes:
        labels = ax.get_legend_handles_labels()[1]
        assert ("$R^l > R$: no certificate" in labels) == ringed
        assert any("asymptotic" in label for label in labels)
    for plot in plotly_figures.ratios(report):
        assert any("no certificate" in trace["name"] for trace in plot["data"]) == ringed


@pytest.mark.parametrize("value", [None, "inf"])
def test_undefined_values_are_gaps(report, value):
    for model in report["models"]:
        model["worst_case"]["marginal_distance"] = value
        for row in model["poster"]:
            row |= dict.fromkeys(("w0", "ratio", "ratio_lower", "ratio_upper", "v_pgd"), value)
    for figure in (
        matplotlib_figures.first_order(report),
        matplotlib_figures.ratios(report),
        matplotlib_figures.distance_histograms(report),
    ):
        figure.canvas.draw()
    text = json.dumps(
        [plotly_figures.ratios(report), plotly_figures.first_order(report, report["models"][0])], allow_nan=False
    )
    assert "null" in text


# report.html


class Tags(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.text = Counter(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


def page_of(report):
    return html.render(report, [None] * len(report["models"]))


def test_page_is_one_file(folder, report):
    page = Tags((Path(report["config"]["run_dir"]) / "report.html").read_text())
    assert page.tags["img"] == sum(2 * len(model["worst_case"]["movers"]) for model in report["models"])
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not page.tags["link"]
    assert not page.tags["iframe"]


def test_page_says_how_it_was_made_and_what_its_numbers_are(enclosed):
    enclosed["models"][0]["warnings"] = [{"text": "12 % of the gradients are zero"}]
    enclosed["models"][0]["peers"] = [{"name": "AutoAttack", "accuracy": 0.25}, {"name": "Square", "queries": 5}]
    text = re.sub(r"\s+", " ", Tags(page_of(enclosed)).text)
    expected = [enclosed["command"], enclosed["scope"], enclosed["versions"]["torch"], enclosed["git_revision"][:40]]
    expected += ["attack's upper bound", "certified lower bound", "asymptotic", "the network itself", "AutoAttack"]
    for phrase in expected:
        assert phrase in text, phrase
    body = text[text.index("Distributional robustness", text.index("Distributional robustness") + 1) :]
    assert body.index("12 % of the gradients are zero") < body.index("clean accuracy")


PAYLOAD = '</script><script>document.title="pwned"</script><img src="{}"> & \'$x_'


def spoilt(report, url="x"):
    """The report with hostile text wherever a user or a checkpoint can put any."""
    report, payload = copy.deepcopy(report), PAYLOAD.format(url)
    report |= {"command": payload, "scope": payload, "git_revision": payload, "split": payload}
    report["config"][payload] = payload
    for model in report["models"]:
        model |= {"name": payload, "checkpoint": payload, "warnings": [{"text": payload}]}
        model["peers"] = [{"name": payload, payload: 1.0}]
        model["certificate"] = {"about": payload, "method": payload, "level": 1.0, payload: payload}
        for row in model["poster"]:
            row["loss"] += payload
    return report


def test_text_is_escaped(report):
    clean, hostile = Tags(page_of(report)), Tags(page_of(spoilt(report)))
    assert hostile.tags["script"] == clean.tags["script"]
    assert hostile.tags["img"] == clean.tags["img"] == 0
    assert hostile.text.count(PAYLOAD.format("x")) > 8
    assert matplotlib_figures.robustness_curves(spoilt(report)).canvas.draw() is None


@pytest.fixture
def browse(tmp_path):
    """A page's document after its scripts ran, and what the browser logged."""

    def run(page, *options, width=1200, height=3000):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]  # nothing leaves this machine
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--enable-logging=stderr"]
        command += [f"--window-size={width},{height}", "--allow-file-access-from-files", *options, f"file://{page}"]
        shutil.rmtree(tmp_path / "profile", ignore_errors=True)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=os.environ | {"HOME": str(tmp_path)}
        )
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return run


@pytest.fixture
def website():
    """A server on this machine that notes what it is asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/pwned", asked
        server.shutdown()


@in_browser
def test_page_draws_and_fetches_nothing(folder, report, browse, tmp_path):
    page = Path(report["config"]["run_dir"]) / "report.html"
    log = tmp_path / "net.json"
    document, console = browse(page, "--dump-dom", f"--log-net-log={log}")
    assert not console
    expected = len(plotly_figures.robustness_curves(report)) + len(plotly_figures.ratios(report))
    expected += sum(1 + len(plotly_figures.first_order(report, model)) for model in report["models"])
    assert document.count('class="plot js-plotly-plot"') == expected
    assert len(re.findall('class="(?:bar|scatter)layer mlayer"', document)) == expected
    assert not fetched(log)


def fetched(log):
    """Addresses the page asked for, by the browser's network log (the browser's own errands have no origin)."""
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return {one["url"] for one in requests if one.get("initiator", "not an origin") != "not an origin"}


@in_browser
def test_hostile_text_does_nothing(both, browse, website, tmp_path):
    url, asked = website
    page = tmp_path / "page.html"
    page.write_text(page_of(spoilt(both, url)))
    document, _ = browse(page, "--dump-dom")
    assert 'class="plot js-plotly-plot"' in document
    assert "<title>pwned" not in document
    assert not asked
    page.write_text(f"<title>safe</title><script>{PAYLOAD.format(url)}")
    document, _ = browse(page, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert "<title>pwned" in document
    assert asked
    assert fetched(tmp_path / "net.json") == {url}


@in_browser
def test_policy_stops_scripts_that_slipped_in(both, browse, website, tmp_path):
    url, asked = website
    page = tmp_path / "page.html"
    page.write_text(page_of(both).replace("<body>", "<body>" + PAYLOAD.format(url)))
    document, console = browse(page, "--dump-dom")
    assert 'class="plot js-plotly-plot"' in document
    assert "<title>pwned" not in document
    assert not asked
    assert len(console) >= 2


MEASURE = """<body style="margin:0">
<iframe id="page" src="{page}" width="{width}" height="900" frameborder="0"></iframe>
<script>window.onload = () => setTimeout(() => {{
  const inside = document.getElementById("page").contentDocument;
  const wide = [...inside.querySelectorAll("body *")].filter(e => !e.closest(".table, pre, svg"))
    .filter(e => e.getBoundingClientRect().right > {width} + 1).map(e => e.tagName + "." + e.className);
  document.title = inside.documentElement.scrollWidth + " " + wide.join(",");
}}, 3000)</script>"""


@in_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_the_screen(folder, report, browse, tmp_path, width):
    page = Path(report["config"]["run_dir"]) / "report.html"
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=f"file://{page}", width=width))
    document, _ = browse(frame, "--dump-dom")
    measured, wide = re.search("<title>([0-9]+) (.*?)</title>", document).groups()
    assert int(measured) <= width
    assert not wide


SCROLLED = """<body style="margin:0">
<iframe id="page" src="{page}" width="360" height="740" frameborder="0"></iframe>
<script>window.onload = () => setTimeout(() => {{
  const inside = document.getElementById("page"), answer = inside.contentDocument.querySelector(".answer");
  const seen = [0, 900, 2500].map(place => {{
    inside.contentWindow.scrollTo(0, place);
    const box = answer.getBoundingClientRect();
    return box.height > 0 && box.left >= 0 && box.top >= 0 && box.right <= 361 && box.bottom <= 740;
  }});
  document.title = seen.join(" ") + " " + (inside.contentWindow.scrollY > 2000) + " " + answer.textContent;
}}, 3000)</script>"""


@in_browser
def test_the_worst_case_stays_in_view_on_a_phone(folder, report, browse, tmp_path):
    """At the top, and wherever the page is scrolled to, on a screen of 360 x 740."""
    page = Path(report["config"]["run_dir"]) / "report.html"
    frame = tmp_path / "frame.html"
    frame.write_text(SCROLLED.format(page=f"file://{page}"))
    document, _ = browse(frame, "--dump-dom")
    said = " ".join(re.search("<title>(.*?)</title>", document, re.DOTALL).group(1).split())
    assert said.startswith("true true true true ")
    for model in report["models"]:
        assert fields.at_most(model["worst_case"]["accuracy"]) in said


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_screenshot_is_light_or_dark(folder, browse, tmp_path, dark):
    page, shot = folder / "alone" / "report.html", tmp_path / "shot.png"
    browse(page, f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={0 if dark else 1}", height=1400)
    picture = matplotlib.image.imread(shot)[..., :3]
    assert picture.shape[:2] == (1400, 1200)
    assert (np.median(picture) < 0.2) == dark
    assert picture.std() > 0.05


# The door, and W&B


def test_door_writes_everything_and_logs_it(folder):
    options = ["ckpt_path=first.ckpt", "limit=40", "poster=null", "logger=wandb", "hydra.run.dir=door"]
    done = run("evaluate.py", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "door" / "report.json").read_text())
    assert not invalid(report)
    assert not (folder / "door" / "figures" / "ratios.png").exists()
    for name in ("report.json", "report.html", "figures", "wandb sync"):
        assert name in done.stdout
    (file,) = (folder / "door" / "wandb").glob("offline-run-*/*.wandb")
    history = wandb_history(file)
    assert "worst_case/accuracy" in history
    assert str(report["models"][0]["worst_case"]["accuracy"])[:12] in history
    media = [path for path in (file.parent / "files" / "media").rglob("*") if path.is_file()]
    assert Counter(path.suffix for path in media) == {".png": 3, ".html": 1, ".json": 1}
