"""Networks side by side, named by their labels everywhere, and radii as they were typed."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from torch import nn

from wdro_train.evaluation import news, warning_signs
from wdro_train.evaluation.certified_curve import CertifiedCurve
from wdro_train.evaluation.choices import CurveGrid
from wdro_train.evaluation.distances import FoundDistances
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.labels import labelled
from wdro_train.evaluation.networks import JudgedNetwork
from wdro_train.evaluation.report import build, comparison, html, markdown, matplotlib_figures, plotly_figures, terminal
from wdro_train.evaluation.report.sentences import headline, moved, written_radii
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import as_json
from wdro_train.utils.written import WrittenRadii

DELTA = 8 / 255
TRAINED = {"attack": {"delta": DELTA}, "data": {"name": "digits", "delta": {"linf": "8/255"}}}


def distances(seed, n=200):
    """Some misclassified images, and distances around the threat's radius."""
    d = np.random.default_rng(seed).uniform(0, 4 * DELTA, n)
    return np.where(np.arange(n) < 10 * (seed + 1), 0.0, d)


def judged(found, ball, certified=None):
    n = len(found)
    kept = FoundDistances(found, np.zeros(n, int), found > 0, np.ones(n, int), 0, 0)
    sure = certified and CertifiedCurve("crown", 1.0, "the network itself", RobustnessCurve(found * certified))
    return NetworkEvidence(ball, "all of them", "digest", kept, certificate=sure)


def report(*names, certified=None, delta="8/255", found=None, p=2.0):
    """A report as `evaluate.py` writes it, of made-up distances."""
    ball = WassersteinBall(p, math.inf, DELTA if delta is None else delta)
    evidence = [judged(distances(k) if found is None else found, ball, certified) for k in range(len(names))]
    grid = CurveGrid((1.0, 2.0, math.inf), tuple(np.linspace(0, 2 * ball.delta, 41)), 0.05, "two")
    networks = [JudgedNetwork(nn.Identity(), TRAINED, f"run{k}", Path(f"run{k}.ckpt")) for k in range(len(names))]
    effort = {"name": "MinimalDistance", "steps": 30, "restarts": 2, "targets": 0}
    models = [
        build.model(network, one, grid, attack=effort, movers=3, networks=len(names))
        for network, one in zip(labelled(networks, names), evidence, strict=True)
    ]
    config = {"attack": {"p": None, "norm": None, "delta": delta}, "curve": {"deltas": None}, "poster": None, "seed": 0}
    return as_json(build.report(build.header(config), ball, "test", models, evidence, 0.05))


@pytest.fixture
def two():
    return report("ours", "baseline", certified=0.5)


class Page(HTMLParser):
    """Tables of a page as lists of rows of texts, and its text by class of the paragraph or block."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.classes, self.open, self.text = [], {}, [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in ("meta", "img", "link", "br"):
            return
        self.open.append((tag, dict(attributes).get("class", "")))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "script" in tags or "style" in tags:
            return
        self.text += data
        if "td" in tags or "th" in tags:
            self.tables[-1][-1][-1] += data
        for _, name in self.open:
            self.classes[name] = self.classes.get(name, "") + data


def test_labels_name_the_networks(two):
    assert [model["name"] for model in two["models"]] == ["ours", "baseline"]
    networks = [JudgedNetwork(nn.Identity(), {}, name, Path(name)) for name in ("a", "b")]
    assert [network.name for network in labelled(networks, None)] == ["a", "b"]
    assert [network.name for network in labelled(networks[:1], "ours")] == ["ours"]
    for labels, said in ((["x"], "names 1 network, but 2 are judged"), (["x", "x"], "has 'x' more than once")):
        with pytest.raises(UserError, match=said):
            labelled(networks, labels)


def test_side_by_side_has_the_numbers_of_the_curves(two):
    (corner, *names), *rows = comparison.side_by_side(two)
    assert (corner, names) == ("", ["ours", "baseline"])
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells)[:4] == ["clean accuracy", "W_2 8/255", "W_1 8/255", "W_∞ 8/255"]
    for p, name in ((2, "W_2 8/255"), (1, "W_1 8/255"), (math.inf, "W_∞ 8/255")):
        for k, cell in enumerate(cells[name]):
            low, high = (float(number) / 100 for number in re.fullmatch(r"(.*) \.\. (.*) %", cell).groups())
            curves = (RobustnessCurve(share * distances(k)) for share in (0.5, 1))
            least, most = (curve.accuracy(DELTA, p) for curve in curves)
            assert low - 1e-12 <= least <= low + 0.001  # rounded outwards, to a tenth of a percent
            assert high - 0.001 <= most <= high + 1e-12
    assert cells["effort of the attack"] == ["30 steps"] * 2
    assert "passes an image" not in cells
    assert cells["certificate"] == ["crown"] * 2
    alone = {row[0]: row[1:] for row in comparison.side_by_side(report("ours"))}
    assert alone["W_2 8/255"][0].startswith("≤ ")
    assert "certificate" not in alone


def test_effort_and_passes_have_rows_of_their_own(two):
    one = {"kind": "first", "passes": 57.3, "asked": 200, "improved": 190, "accuracy": 0.5}
    for model in two["models"]:
        model["distances"]["attack"]["effort"] = "auto"
        model["distances"]["convergence"] = {"rounds": [one], "capped": False}
    cells = {row[0]: row[1:] for row in comparison.side_by_side(two)}
    assert cells["effort of the attack"] == ["auto effort"] * 2
    assert cells["passes an image"] == ["57"] * 2
    assert "(attack, auto effort, 57 passes an image)" in headline(two, two["models"][0])


def test_the_differences_are_the_paired_ones(two):
    (ball, pair), *rows = comparison.paired_differences(two)
    assert (ball, pair) == ("W_2 8/255", "ours − baseline")
    (found,) = two["differences"]["rows"]
    assert rows[0][1] == f"{100 * found['attacked']:.1f} %"
    assert len(rows) == 4
    assert comparison.paired_differences(report("ours")) is None
    three = comparison.paired_differences(report("a", "b", "c"))
    assert three[0][1:] == ["a − b", "a − c", "b − c"]
    assert three[3][1:] == ["–"] * 3  # nothing is certified


def test_the_terminal_shows_both_tables_first_and_keeps_to_80_columns(two, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    terminal.show(two, [])
    printed = capsys.readouterr().out
    assert printed.index("│ W_2 8/255") < printed.index("ours − baseline") < printed.index("ours: 200 test images")
    assert max(len(line) for line in printed.splitlines() if line[:1] in "┏┃┡│└") <= 80
    assert "delta 2/255" in printed
    assert "0.0314" not in printed


def test_brackets_in_a_label_are_printed(capsys):
    terminal.show(report("[red]ours", "PGD [8/255]"), [])
    printed = capsys.readouterr().out
    assert "[red]ours: 200 test images" in printed
    assert re.search(r"┃ +\[red\]ours ┃ +PGD \[8/255\] ┃", printed)


def test_the_page_has_the_answer_before_everything_else(two):
    two["models"][0]["warnings"] = [{"check": "randomness", "figure": 1, "text": "two looks differ"}]
    page = Page(html.render(two, [None, None]))
    assert page.tables[0] == comparison.side_by_side(two)
    assert page.tables[1] == comparison.paired_differences(two)
    for model in two["models"]:
        cell = comparison.left(model, "2.0", DELTA)
        assert cell in page.classes["answer"]
        assert model["name"] in page.classes["answer"]
    assert page.text.index("(attack, 30 steps)") < page.text.index("two looks differ")
    assert page.text.count("0.03137") == page.text.count("8/255 (0.031372549)") == 1  # among the facts, in full
    assert "0.0314" not in page.text
    header = next(table[0] for table in page.tables if table[0][0] == "radius δ")
    assert header[1:4] == ["0", "2/255", "4/255"]


def test_markdown_holds_both_tables(two):
    text = markdown.render(two)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rows = [row for row in rows if set("".join(row)) != {"-"}]
    assert rows == [*comparison.side_by_side(two), *comparison.paired_differences(two)]
    assert "**ours:** accuracy left under W_2 8/255 lies between" in text
    hostile = markdown.render(report("a|b<script>", "b"))
    assert "a\\|b&lt;script>" in hostile


@pytest.mark.parametrize("names", [("ours",), ("ours", "baseline")])
def test_every_figure_names_the_networks_and_its_axes(names):
    one = report(*names)
    for draw in (matplotlib_figures.robustness_curves, matplotlib_figures.distance_histograms):
        figure = draw(one)
        legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        said = " ".join([*legends, *(ax.get_title() for ax in figure.axes)])
        assert all(name in said for name in names)
        for ax in figure.axes:
            assert r"$\ell_\infty$ norm, pixels in [0, 1]" in ax.get_xlabel()
            assert ax.get_ylabel()
            assert "8/255" in [text.get_text() for text in ax.get_xticklabels()]
    plots = [*plotly_figures.robustness_curves(one)]
    plots += [plotly_figures.distance_histogram(one, model) for model in one["models"]]
    for plot in plots[: 3 if len(names) > 1 else 1]:
        assert all(name in str([plot["title"], *(trace["name"] for trace in plot["data"])]) for name in names)
    assert [plot["title"] for plot in plots[-len(names) :]] == list(names)
    for plot in plots:
        axis = plot["layout"]["xaxis"]
        assert "ℓ<sub>∞</sub> norm, pixels in [0, 1]" in axis["title"]["text"]
        assert axis["tickvals"][axis["ticktext"].index("8/255")] == pytest.approx(DELTA)


def test_decimals_stay_decimals():
    one = report("ours", delta="0.03")
    assert "W_2 0.03" in headline(one, one["models"][0])
    assert "255" not in " ".join(row[0] for row in comparison.side_by_side(one))


def test_radii_of_the_data_are_written_as_its_configuration_has_them():
    one = report("ours", delta=None)
    assert "W_2 8/255" in headline(one, one["models"][0])
    assert written_radii(one)(DELTA / 4) == "2/255"


@pytest.mark.slow
@pytest.mark.covers
def test_figures_are_the_same_files_again(two, tmp_path):
    """As PNG, PDF and SVG, and nothing in them tells the time."""
    for name in ("one", "again"):
        files = matplotlib_figures.save(matplotlib_figures.distance_histograms(two), tmp_path / name)
    assert [file.name for file in files] == ["again.png", "again.pdf", "again.svg"]
    for file in files:
        content = file.read_bytes()
        assert content == file.with_stem("one").read_bytes()
        if file.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            assert b"/Type3" not in content
        if file.suffix == ".svg":
            assert ElementTree.fromstring(content).tag.endswith("svg")


@pytest.mark.parametrize(
    ("found", "p", "said"),
    [
        ([0.0, 0.001, 0.002], 2.0, "moves all 2 correct images, with budget to spare"),
        (
            [0.0, 0.001, math.inf],
            2.0,
            "moves all 1 correct images that an attack flipped, with budget to spare; 1 were flipped by none",
        ),
        ([0.0, 0.02, 0.5], 1.0, "moves 2 correct images, nearest first, up to distance 0.5"),
        ([0.0, 0.02, 0.5], math.inf, "moves 1 correct images, nearest first, up to distance 8/255"),
        ([0.0, 0.3, 0.5], math.inf, "moves none of the correct images"),
    ],
)
def test_which_images_are_moved(found, p, said):
    one = report("ours", found=np.asarray(found), p=p)
    assert moved(one, one["models"][0]) == f"the worst case {said}"
    assert "distance inf" not in html.render(one, [None])


def test_warnings_and_news_write_radii_as_typed():
    written, ball = WrittenRadii("8/255"), WassersteinBall(2, math.inf, DELTA)
    found = judged(distances(0), ball)
    better = RobustnessCurve(distances(0) / 2)
    said = [warning_signs.cheaper_elsewhere(found.found, better, 2, DELTA, written).text]
    said += [news.worst_case("ours", replace(found, written=written))]
    assert "radius 8/255" in said[0]
    assert "W_2 8/255" in said[1]
    assert all("0.03" not in text for text in said)
