"""`wdro_train.load`: the network of a run, of a checkpoint and of an export, with what is known of it."""

import json
import os
import shutil

import pytest
import torch
from shell import ROOT, Arrays, digits

import wdro_train
from wdro_train.certificates import LinearRelaxation
from wdro_train.data import ImageDataModule
from wdro_train.evaluation import trained
from wdro_train.evaluation.network_figures import described, newest_report
from wdro_train.evaluation.networks import load_network
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.resuming import CLASS_NAMES
from wdro_train.training.run import _names_of_classes
from wdro_train.utils.errors import UserError

STORED = ROOT / "tests/reference/checkpoint_0.1.0.ckpt"
METRICS = {
    "command": "train.py attack.p=2",
    "seed": 3,
    "threat": {"p": 2, "norm": "inf", "delta": "0.1"},
    "val": {"clean_acc": 0.5, "adv_acc": 0.25},
    "test": {"clean_acc": 0.75, "worst_acc": 0.125, "certified_acc": None},
    "effort": "worst_acc: knapsack over distances of 20 steps",
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run whose best epoch is a checkpoint of version 0.1.0."""
    best = tmp_path / "run/checkpoints/best.ckpt"
    best.parent.mkdir(parents=True)
    shutil.copy(STORED, best)
    return tmp_path / "run"


@pytest.fixture
def epoch():
    return torch.load(STORED, weights_only=True)["epoch"]


def write_metrics(run, **changes):
    content = METRICS | {"checkpoint": str(run / "checkpoints/best.ckpt")} | changes
    (run / "metrics.json").write_text(json.dumps(content))


def write_report(file, checkpoint, **changes):
    model = {
        "checkpoint": str(checkpoint),
        "images": 360,
        "clean_accuracy": 0.875,
        "distances": {"attack": {"name": "MinimalDistance", "steps": 30, "restarts": 1, "targets": 0}},
        "interval": {"attacked": 0.5, "certified": 0.25},
        "certificate": {"method": "crown", "level": 0.999},
    }
    threat = {"p": "inf", "norm": 2, "delta": 0.05}
    head = {"created": "2999-01-01T00:00:00+00:00", "command": "evaluate.py", "seed": 0, "split": "test"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head | {"threat": threat, "models": [model | changes]} | changes.pop("head", {})))
    return file


def test_a_run_and_its_checkpoint_are_the_same_network_ready_to_classify(run, monkeypatch):
    monkeypatch.setattr(ImageDataModule, "setup", lambda *_: pytest.fail("no data are needed"))
    x, _ = digits(20)
    expected = load_network(STORED).model(x)
    for path in (run, run / "checkpoints", run / "checkpoints/best.ckpt", str(run)):
        network = wdro_train.load(path)
        assert not any(module.training for module in network.modules())
        assert torch.equal(network(x), expected)
        assert network.threat == load_network(STORED).threat()
        assert (network.name, network.dataset, network.shape) == ("small_cnn", "Digits", (1, 8, 8))
        assert network.classes == tuple("0123456789")
        assert network.figures is None


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"_target_": "wdro_train.data.ImageFolderDataModule", "root": "/home/me/pets/"}, "pets"),
        ({"_target_": "wdro_train.data.ImageFolderDataModule", "root": "."}, "ImageFolderDataModule"),
        ({"_target_": "wdro_train.data.HuggingFaceDataModule", "name": "me/pets"}, "me/pets"),
        ({"_target_": "wdro_train.data.Digits", "root": "/data"}, "Digits"),
    ],
)
def test_what_the_images_are_called(data, name):
    assert trained.data_name(data) == name


def test_without_a_best_epoch_it_is_the_last_one(run):
    (run / "checkpoints/best.ckpt").rename(run / "checkpoints/last.ckpt")
    assert wdro_train.load(run).path == run / "checkpoints/last.ckpt"


def test_figures_of_the_run(run, epoch):
    write_metrics(run, epoch=epoch, images={"test": 360})
    network = wdro_train.load(run)
    found = network.figures
    assert (found.split, found.images, found.seed, network.command) == ("test", 360, 3, "train.py attack.p=2")
    assert (found.clean, found.adversarial, found.worst_case, found.certified) == (0.75, None, 0.125, None)
    assert found.threat == WassersteinBall(2, "inf", 0.1)
    assert found.effort == "knapsack over distances of 20 steps"
    write_metrics(run, epoch=epoch, test=None)
    found = wdro_train.load(run).figures
    assert (found.split, found.clean, found.adversarial, found.images) == ("val", 0.5, 0.25, None)
    trained = torch.load(STORED, weights_only=True)["wdro_train_config"]["callbacks"]["adversary"]
    assert found.effort == described(trained["val_attack"])
    write_metrics(run, epoch=epoch, effort=None)
    assert wdro_train.load(run).figures.effort == described(trained["distances"]), "as versions before wrote it"


@pytest.mark.parametrize("other", ["another epoch", "another checkpoint", "damaged", "none"])
def test_figures_of_another_network_are_not_taken_for_its_own(run, epoch, other):
    write_metrics(run, epoch=epoch + (other == "another epoch"))
    if other == "another checkpoint":
        (run / "checkpoints/best.ckpt").rename(run / "checkpoints/last.ckpt")
    if other == "damaged":
        (run / "metrics.json").write_text("{")
    if other == "none":
        (run / "metrics.json").unlink()
    assert wdro_train.load(run).figures is None


def test_figures_of_a_report(run):
    report = write_report(run.parent / "runs/evaluate/1/report.json", run / "checkpoints/best.ckpt")
    for given in (report, report.parent):
        found = wdro_train.load(run, report=given).figures
        assert (found.clean, found.worst_case, found.certified) == (0.875, 0.5, 0.25)
        assert found.threat == WassersteinBall("inf", 2, 0.05)
        assert found.effort == "MinimalDistance (steps 30, restarts 1, targets 0)"
        assert (found.images, found.certificate, found.source) == (360, "crown, level 0.999", str(report))


def test_a_certificate_that_encloses_nothing_gives_no_figure(run):
    interval = {"attacked": 0.5, "certified": None}
    report = write_report(run.parent / "report.json", run / "checkpoints/best.ckpt", interval=interval)
    found = wdro_train.load(run, report=report).figures
    assert (found.certified, found.certificate) == (None, None)


def test_a_report_about_something_else_is_refused(run):
    checkpoint = run / "checkpoints/best.ckpt"
    older = write_report(run.parent / "1/report.json", checkpoint, head={"created": "2001-01-01T00:00:00+00:00"})
    with pytest.raises(UserError, match="is older than"):
        wdro_train.load(run, report=older)
    with pytest.raises(UserError, match=r"is about elsewhere\.ckpt; judge this network with evaluate.py ckpt_path="):
        wdro_train.load(run, report=write_report(run.parent / "2/report.json", "elsewhere.ckpt"))
    with pytest.raises(UserError, match="is no report"):
        wdro_train.load(run, report=STORED)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test": {"clean_acc": "<b>"}}, "clean=<b>, which is no share of images"),
        ({"test": {"certified_acc": 7}}, "certified=7, which is no share of images"),
        ({"test": {"worst_acc": float("nan")}}, "worst_case=nan, which is no share of images"),
        ({"images": {"test": "many"}}, "images=many, which is no number of images"),
        ({"test": [1]}, "is damaged .*; remove it"),
        ({"threat": None}, "is damaged .*; remove it"),
        ({"threat": {"radius": 1}}, "is damaged .*; remove it"),
    ],
)
def test_figures_that_are_none_are_refused(run, epoch, changes, sentence):
    write_metrics(run, epoch=epoch, **changes)
    with pytest.raises(UserError, match=rf"metrics\.json .*{sentence}"):
        wdro_train.load(run)


def test_a_damaged_report_is_refused(run):
    file = write_report(run.parent / "1/report.json", run / "checkpoints/best.ckpt", interval=None)
    with pytest.raises(UserError, match=r"report\.json is damaged .*; judge the network with evaluate\.py again"):
        wdro_train.load(run, report=file)
    assert newest_report(run / "checkpoints/best.ckpt", run.parent) is None


def test_the_newest_report_of_the_network_is_found(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    checkpoint = run / "checkpoints/best.ckpt"
    assert newest_report(checkpoint) is None
    ages = {"a": checkpoint, "b": "run/checkpoints/best.ckpt", "c": "another.ckpt"}  # relative to where it was judged
    for age, (name, judged) in enumerate(ages.items()):
        os.utime(write_report(run.parent / f"runs/evaluate/{name}/report.json", judged), (age, age))
    assert newest_report(checkpoint).parent.name == "b"


def test_names_of_classes_are_kept_and_come_back(run):
    data = Arrays()
    assert _names_of_classes(data) == {}
    data.class_names = ["${oc.env:HOME}"]
    assert _names_of_classes(data) == {}, "the checkpoint could not be read again"
    data.class_names = [f"digit {k}" for k in range(10)]
    content = torch.load(STORED, weights_only=True)
    content["wdro_train_config"] |= _names_of_classes(data)
    assert content["wdro_train_config"][CLASS_NAMES][1] == "digit 1"
    torch.save(content, run / "checkpoints/best.ckpt")
    assert wdro_train.load(run).classes == tuple(data.class_names)


def test_what_is_no_network_is_refused_in_a_sentence(tmp_path):
    for path, sentence in (
        (tmp_path / "nothing", "there is nothing at"),
        (tmp_path, "there is no checkpoint in .*; give the folder of a training run"),
        (ROOT / "README.md", "cannot be read as a checkpoint"),
    ):
        with pytest.raises(UserError, match=sentence):
            wdro_train.load(path)


def test_what_asks_for_the_network_itself_gets_it(run):
    """Certificates read it layer by layer, and curves are computed of it like of any other."""
    network, (x, y) = wdro_train.load(run), digits(8)
    certificate = LinearRelaxation(norm="inf", method="ibp")
    assert torch.equal(certificate(network, x, y).radii, certificate(network.network, x, y).radii)
    assert LinearRelaxation(norm="inf", method="crown")(network.network, x, y).radii.sum() > 0
    found = [wdro_train.robustness_curve(net, [(x, y)], norm="inf", steps=3) for net in (network, network.network)]
    assert found[0].distances.tolist() == found[1].distances.tolist()
