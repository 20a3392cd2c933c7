"""What `evaluate.py` costs by default, what it prints when, and how often it looks at a file."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from oracles import on_ranks, reference_images, reference_network
from PIL import Image
from shell import run

from wdro_train.attacks import MinimalDistance
from wdro_train.config.resolvers import register_resolvers
from wdro_train.data import ImageArrays
from wdro_train.evaluation import judge
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.whole_set_pgd import pgd_whole_set
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.distributed import LocalReducer
from wdro_train.utils.pass_counter import PassCounter

ROOT = Path(__file__).parents[2]
BALL = WassersteinBall(2, math.inf, 0.1)


def settings(*overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["pictures=0", *overrides])


def networks():
    torch.manual_seed(0)
    untrained = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    return {"trained": reference_network("adversarial"), "untrained": untrained.eval()}


def measured(model, folder, *overrides, ball=BALL, n=120):
    x, y = reference_images()
    arrays = ImageArrays(x[:n], y[:n], scale=1.0)
    store = PieceStore(folder, {})
    return judge.measure_network(settings(*overrides), "net", model, arrays, ball, store, torch.device("cpu"))[0]


@pytest.mark.parametrize("overrides", [[], ["distances.effort=quick"], ["distances.steps=60", "first_order.p=[1.5,2]"]])
@pytest.mark.parametrize("name", networks())
@pytest.mark.slow
@pytest.mark.covers
def test_default_run_costs_twice_its_distances(name, overrides, tmp_path, capsys):
    model, n = networks()[name], 10
    with PassCounter(model) as counter:
        evidence = measured(model, tmp_path, *overrides, n=n)
    passes = {name: counted.pairs for name, counted in evidence.passes}
    assert sum(passes.values()) == counter.pairs  # what the report says is what went through the network
    assert counter.pairs <= 2.0 * passes["distances"] + passes["two looks at the first batch"]
    assert passes["two looks at the first batch"] == n
    if name == "trained":
        assert counter.pairs <= 2.2 * passes["distances"]
        everything = all(row.steps == 50 for row in evidence.first_order) and len(evidence.first_order) > 1
        assert everything or passes["first-order rows"] > passes["distances"] - 3 * n  # not one step more
        assert {row.loss for row in evidence.first_order} >= {"redlr"}
    elif passes["distances"] < 10 * n:
        assert not evidence.first_order
        assert "no first-order values and no W-PGD" in capsys.readouterr().out


def test_passes_are_those_of_all_ranks_and_of_killed_runs(tmp_path):
    x, y = reference_images()
    batches = list(zip(x[:50].split(15), y[:50].split(15), strict=True))

    def work(reducer, model):
        ours = Engine(model, batches, PieceStore(tmp_path / str(reducer.world_size), {}), reducer=reducer)
        find_distances(ours, MinimalDistance(norm=math.inf, steps=2))
        pgd_whole_set(ours, norm=math.inf, loss="ce", p=2, delta=0.1, steps=2, box=True)
        return ours.ledger.total

    model = reference_network("adversarial")
    alone = work(LocalReducer(), model)
    assert alone.backward > 0
    with PassCounter(model) as counter:
        again = work(LocalReducer(), model)
    assert counter.forward == 0, "all pieces are there"
    assert [again, *on_ranks(2, work, model)] == [alone] * 3


@pytest.mark.slow
@pytest.mark.covers
def test_grid_and_former_names_are_what_they_were(tmp_path):
    """The rows of the default are among those of the grid in all but the effort; `poster.*` gives the whole grid."""
    model, effort = reference_network("adversarial"), ["distances.steps=3"]
    full = measured(model, tmp_path / "a", "first_order=full", "first_order.steps=4", *effort, n=40)
    former = measured(model, tmp_path / "b", "poster.pgd_steps=4", *effort, n=40)
    keys = [(row.loss, row.ball.p, row.ball.delta) for row in full.first_order]
    assert keys == [(loss, 2.0, delta) for loss in ("ce", "redlr") for delta in (0.025, 0.05, 0.1)]
    for ours, theirs in zip(full.first_order, former.first_order, strict=True):
        assert (ours.pgd_acc, ours.v_pgd, ours.quantities) == (theirs.pgd_acc, theirs.v_pgd, theirs.quantities)
        assert np.array_equal(ours.flips, theirs.flips)
    for nothing in ("first_order=none", "poster=null"):
        assert measured(model, tmp_path / "a", nothing, *effort, n=40).first_order == ()


@pytest.mark.slow  # Square asks five thousand times, whatever the number of images
@pytest.mark.covers
def test_answer_comes_first(tmp_path, monkeypatch):
    """Every result is printed before the next measurement begins."""
    told = []

    class Display:
        def __init__(self, *args, **kwargs):
            pass

        def __call__(self, stage, done, total=None):
            if done == 0:
                told.append(stage.partition("_")[0])

        def tell(self, line):
            told.append(line)

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

    monkeypatch.setattr(judge, "progress_display", Display)
    options = ["certificate.method=ibp", "peers.square=true", "distances.steps=5"]
    evidence = measured(reference_network("adversarial"), tmp_path, *options, n=5)
    found = " | ".join(told)
    order = [
        "distances",
        r"net: accuracy left under W_2 0\.1 is at most",
        "certificate",
        r"certified \(ibp\): at least",
    ]
    order += ["peer", "Square leaves", "slopes", "grid", "pgd", r"W-PGD \(redlr, \d+ steps\) leaves"]
    assert re.search(".*".join(order), found), found
    assert len(evidence.references) == 1


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("test", 45)):
        for name in ("cat", "dog"):
            (folder / "images" / part / name).mkdir(parents=True)
            for k in range(n):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / part / name / f"{k}.png")
    (folder / "counted.py").write_text(COUNTED)
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)).state_dict(), folder / "w.pt")
    return folder


COUNTED = """
from pathlib import Path

import torch
from wdro_train.data import folders

plain = folders.open_image

def opened(path):
    with open("opened", "a") as log:
        print(path, file=log)
    return plain(path)

def net(**unused):
    folders.open_image = opened
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
"""
FOLDER = ["data=image_folder", "data.root=images", "data.shape=[3,8,8]", "accelerator=cpu", "attack.delta=0.02"]
FOLDER += ["+model._target_=counted.net", "+model.weights=w.pt", "distances.steps=20"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["data.num_workers=2"], ["devices=2", "batch_size=30"]])
def test_each_file_is_decoded_once(images, options, tmp_path):
    (images / "opened").unlink(missing_ok=True)
    abandoned = images / "store" / "images-of-a-killed-run"
    abandoned.mkdir(parents=True, exist_ok=True)
    abandoned.with_suffix(".lock").touch()
    here = {"PYTHONPATH": f"{images}:{ROOT / 'tests/helpers'}:{ROOT}"}
    done = run("evaluate.py", *FOLDER, *options, "store=store", f"hydra.run.dir={tmp_path}/out", cwd=images, env=here)
    assert done.returncode == 0, done.stderr
    opened = (images / "opened").read_text().splitlines()
    tests = sorted(path for path in opened if "/test/" in path or path.startswith("images/test"))
    if not options or "num_workers" in options[0]:
        assert len(tests) == len(set(tests)) == 90
    else:  # each rank's check of the shape decodes one image before it knows of the others
        assert len(set(tests)) == 90 <= len(tests) <= 92
    assert not list((images / "store").iterdir())
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["models"][0]["passes"][0]["measurement"] == "distances"
    assert "accuracy left under W_2 0.02 is at most" in done.stdout
    assert "fontTools" not in done.stdout + done.stderr
