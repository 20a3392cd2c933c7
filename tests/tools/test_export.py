"""Networks outside the framework: what each format holds gives the same logits, and the card says what was measured."""

import dataclasses
import http.server
import json
import math
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml
from shell import ROOT, run
from torch import nn

import wdro_train
from wdro_train import models
from wdro_train.evaluation.network_figures import Figures
from wdro_train.evaluation.trained import TrainedNetwork
from wdro_train.theory.ball import WassersteinBall
from wdro_train.tools import export as command
from wdro_train.tools import export_formats, hub
from wdro_train.tools.export import TOLERANCE, export
from wdro_train.tools.export_formats import FORMATS
from wdro_train.tools.model_card import card, command_for_others
from wdro_train.utils.errors import UserError

STORED = ROOT / "tests/reference/checkpoint_0.1.0.ckpt"
MARKS = {"onnx": pytest.mark.slow}  # torch needs five seconds to translate its first network
SHAPE = (3, 8, 8)
BALL = WassersteinBall(2, "inf", 0.1)
FIGURES = Figures(
    threat=BALL, split="test", images=360, clean=0.97777, adversarial=0.57222, worst_case=0.41736, certified=0.12349,
    effort="MinimalDistance (steps 30)", certificate="crown", seed=0, command="evaluate.py certificate.method=crown",
    source="/home/me/report.json",
)  # fmt: skip
SIZES = {"small_cnn": {"width": 4}, "lipschitz_cnn": {"channels": 12, "width": 16, "blocks": 1}}
SIZES |= {"lipschitz_mlp": {"width": 16, "depth": 2}}


class Wrapped(nn.Module):
    """Answers like networks of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.flat, self.last = nn.Flatten(), nn.Linear(192, 5)

    def forward(self, x):
        return {"logits": self.last(self.flat(x)), "hidden": x}


class OfValues(nn.Module):
    """Takes another way for bright images."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(192, 5)

    def forward(self, x):
        return self.last(x.flatten(1)) if x.mean() > 0.5 else -self.last(x.flatten(1))


class Noisy(Wrapped):
    """Answers at random."""

    def forward(self, x):
        return super().forward(x + torch.rand_like(x))["logits"]


def trained(name="small_cnn", network=None, figures=FIGURES):
    """A network whose normalisation and statistics of batches matter, as if it had been trained."""
    torch.manual_seed(0)
    sizes = SIZES.get(name, {})
    arguments = {"shape": list(SHAPE), "num_classes": 5, "mean": [0.2, 0.4, 0.6], "std": [0.2, 0.3, 0.1], **sizes}
    made = getattr(models, name)(**arguments) if network is None else network
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return TrainedNetwork(
        made.eval(), model={"_target_": f"wdro_train.models.{name}", "weights": "/home/me/w.pt", **arguments},
        classes=["cat", "dog", "bird", "fish", "fly"], shape=SHAPE, threat=BALL, figures=figures, path=STORED,
        dataset="Pets", command="/opt/code/train.py data=folder attack.p=2",
    )  # fmt: skip


def outside(name, folder):
    """The logits of a file, by its own library alone."""
    if name == "onnx":
        onnx.checker.check_model(onnx.load(folder / "model.onnx"))
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
    return torch.export.load(folder / "model.pt2").module()


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("kind", ["small_cnn", "wrapped"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in FORMATS])
def test_reloading_gives_the_same_logits(name, kind, size, tmp_path, exported):
    network, folder = exported(name, kind)
    x = torch.rand(size, *SHAPE)
    expected = network(x)
    if name in ("onnx", "torch_export"):
        found = outside(name, folder)(x)
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
        assert (found[0] - found[-1]).abs().max() > 0 or size == 1
    elif kind == "small_cnn":
        again = wdro_train.load(folder)
        assert torch.equal(again(x), expected)
        assert (again.classes, again.threat, again.shape) == (network.classes, network.threat, network.shape)
        assert again.figures == Figures(**vars(FIGURES) | {"source": "report.json"})
        assert (again.name, again.dataset, again.command) == (
            network.name,
            network.dataset,
            "train.py data=folder attack.p=2",
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports, each of them written once."""
    made = {}

    def folder(name, kind):
        if (name, kind) not in made:
            network = trained(network=Wrapped() if kind == "wrapped" else None)
            out = tmp_path_factory.mktemp("export") / name
            assert export(network, name, out) <= TOLERANCE
            made[name, kind] = network, out
        return made[name, kind]

    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lipschitz_cnn", "resnet18"])
def test_shipped_networks_as_programs(kind, tmp_path):
    network = trained(kind)
    for name in ("onnx", "torch_export"):
        assert export(network, name, tmp_path / name) <= TOLERANCE


def test_weights_are_those_of_the_bare_network(exported):
    network, folder = exported("state_dict", "small_cnn")
    content = torch.load(folder / "model.pt", weights_only=True)
    assert content.keys() == network.network.state_dict().keys()
    _, folder = exported("safetensors", "small_cnn")
    found = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(found[key], content[key]) for key in content)


def test_what_is_of_this_machine_stays_here(exported):
    _, folder = exported("safetensors", "small_cnn")
    for file in ("config.json", "README.md"):
        text = (folder / file).read_text()
        assert "/home/me" not in text
        assert "/opt/code" not in text
    assert json.loads((folder / "config.json").read_text())["model"]["weights"] is None


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in ("onnx", "torch_export")])
def test_a_program_does_not_say_where_its_source_lay(name, exported):
    _, folder = exported(name, "small_cnn")
    content = (folder / FORMATS[name].file).read_bytes()
    if name == "torch_export":
        with zipfile.ZipFile(folder / FORMATS[name].file) as archive:
            content = b"".join(map(archive.read, archive.namelist()))
    for place in (ROOT, Path(torch.__file__).parents[1], Path.home()):
        assert f"{place}/".encode() not in content, place


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out is there already; choose another folder with --out, or remove it"):
        export(trained(), "state_dict", tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == []


class Wrong(export_formats.StateDict):
    def write(self, network, path):
        network = trained()
        network.network[-1].bias.data += 1
        super().write(network, path)


class Broken(export_formats.StateDict):
    def write(self, network, path):
        super().write(network, path)
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("kind", "error"), [(Wrong, UserError), (Broken, OSError)])
def test_a_failed_export_leaves_nothing(kind, error, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "state_dict", kind())
    with pytest.raises(error, match=r"off by .* so it is not kept|No space left"):
        export(trained(), "state_dict", tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_network_without_finite_logits_is_refused(tmp_path):
    """Its answers are no more random than others, though not equal to themselves."""
    network = trained()
    with torch.no_grad():
        next(network.network.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="gives logits that are not finite, which no export mends; train it again"):
        export(network, "safetensors", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_a_program_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be written as a program .*; export its weights with --format safet"):
        export(trained(network=OfValues()), "torch_export", tmp_path / "out")
    with pytest.raises(UserError, match="answers at random"):
        export(trained(network=Noisy()), "torch_export", tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(export_formats, "program", lambda _: pytest.fail("work was done"))
    with pytest.raises(UserError, match=r"onnxscript is not installed; run pip install 'wdro-train\[export\]'"):
        export(trained(), "onnx", tmp_path / "out")


def test_folders_of_others(tmp_path, exported):
    """An export is data: it may be a program for another library, or ask for what it must not."""
    _, folder = exported("torch_export", "small_cnn")
    with pytest.raises(UserError, match="holds no weights but a program for another library"):
        wdro_train.load(folder)
    _, folder = exported("state_dict", "small_cnn")
    with pytest.raises(UserError, match="whose figures are in it"):
        wdro_train.load(folder, report=folder)
    shutil.copytree(folder, tmp_path / "evil")
    content = json.loads((folder / "config.json").read_text())
    for change, sentence in (
        ({"model": {"_target_": "os.system", "command": "true"}}, "asks to run 'os.system'|asks to run os.system"),
        ({"model": content["model"] | {"mean": "${oc.env:HOME}"}}, "what a file refers to is not looked up"),
        ({"model": content["model"] | {"deeper": 3}}, "cannot be made"),
        ({"model": content["model"] | {"width": 8}}, "does not fit this network"),
        ({"model": {}}, "does not say which model"),
        ({"threat": [1]}, "was not written by wdro_train"),
        ({"threat": content["threat"] | {"delta": -1}}, r"config\.json is damaged: .*not a radius"),
        ({"figures": content["figures"] | {"certified": 7}}, r"config\.json is damaged: .*certified=7"),
        ({"figures": {"split": "test"}}, "was not written by wdro_train"),
        ({"classes": 3}, "was not written by wdro_train"),
        ({"shape": "abc"}, "was not written by wdro_train"),
        ({"shape": [4, 8, 8]}, "cannot be made"),
    ):
        (tmp_path / "evil/config.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=sentence):
            wdro_train.load(tmp_path / "evil")
    (tmp_path / "evil/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json was not written by wdro_train"):
        wdro_train.load(tmp_path / "evil")


def head_and_text(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_says_what_was_measured_and_rounds_against_itself():
    head, body = head_and_text(card(trained(), "onnx"))
    (index,) = head["model-index"]
    (result,) = index["results"]
    found = {metric["name"]: metric["value"] for metric in result["metrics"]}
    ball = "W_2 0.1 in l_inf"
    assert found == {
        "clean accuracy": 0.9778,
        f"adversarial accuracy (attack, upper bound), {ball}": 0.5723,
        f"worst-case accuracy (attack, upper bound), {ball}": 0.4174,
        f"certified accuracy (lower bound), {ball}": 0.1234,
    }
    assert result["dataset"] == {"name": "Pets", "type": "pets", "split": "test"}
    assert head["pipeline_tag"] == "image-classification"
    for part in (
        "360 images of the split `test`", "97.8 %", "57.3 %", "41.8 %", "12.3 %", "crown", "upper bound", "lower bound",
        "MinimalDistance (steps 30)", "`python evaluate.py certificate.method=crown`", "cat, dog, bird",
        "$ python train.py data=folder attack.p=2", "Seed: 0", 'InferenceSession("model.onnx")', "[B, 3, 8, 8]",
    ):  # fmt: skip
        assert part in body, part


def test_the_card_says_what_was_not_measured():
    head, body = head_and_text(card(trained(figures=None), "state_dict"))
    assert "model-index" not in head
    assert "Nothing was recorded" in body
    few = Figures(threat=BALL, split="val", clean=0.5, adversarial=0.25)
    _, body = head_and_text(card(trained(figures=few), "safetensors"))
    assert "an unrecorded number of images of the split `val`" in body
    assert "The worst case was not measured" in body
    assert "Nothing is certified" in body
    assert "worst-case accuracy" not in body


@pytest.mark.parametrize("name", ["state_dict", "safetensors", "onnx", "torch_export"])
def test_the_card_says_how_a_network_of_ones_own_is_opened(name):
    """With weights somebody else needs its code and has to name it; a program needs neither."""
    network = trained()
    assert 'wdro_train.load("path/of/this/folder")' in card(network, "safetensors")
    network.model["_target_"] = "my_package.Net`"
    text = card(network, name)
    weights = name in ("state_dict", "safetensors")
    assert ('wdro_train.load("path/of/this/folder", allowed={"my_package.Net_"})' in text) == weights
    assert ("made by `my_package.Net_`, which is not part of wdro_train" in text) == weights


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("train.py data.root=/home/me/pets attack.delta=8/255", "train.py data.root=pets attack.delta=8/255"),
        ("evaluate.py ckpt_path=[/home/me/a.ckpt,/home/me/b.ckpt]", "evaluate.py ckpt_path=[a.ckpt,b.ckpt]"),
        (r"train.py data.root=C:\Users\me\pets", "train.py data.root=pets"),
        ("train.py hydra.searchpath=['file:///home/me/conf']", "train.py hydra.searchpath=['conf']"),
        ("train.py data.root=~/pets/ --config-dir /home/me/conf", "train.py data.root=pets --config-dir conf"),
        ("evaluate.py model.name=hf-hub:me/net ckpt_path=runs/a.ckpt", "evaluate.py model.name=hf-hub:me/net "
         "ckpt_path=runs/a.ckpt"),
    ],
)  # fmt: skip
def test_commands_are_told_without_folders_of_this_machine(typed, told):
    assert command_for_others(typed) == told


def test_names_in_a_card_are_text():
    """Classes, efforts and commands come from files that others may have written."""
    evil = "x\n\n# Certified 100 % ![](http://a/b.png) <img src=c> | d ``` e"
    named = dataclasses.replace(FIGURES, split=evil, effort=evil, certificate=evil, seed=evil, command=evil)
    network = trained(figures=named)
    network.classes, network.dataset, network.command = (evil,) * 5, evil, evil
    head, body = head_and_text(card(network, "onnx"))
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == evil
    lines = body.splitlines()
    assert sum(line.startswith("#") for line in lines) == 5
    assert sum(line.startswith("```") for line in lines) == 4
    prose = re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", body.split("## How it was trained")[0]))
    assert not re.search(r"<img|!\[|`", prose), prose
    assert {line.count("|") for line in prose.splitlines() if line.startswith("|")} == {4}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def do_POST(self):
        body = self._body()
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        answer = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"http://127.0.0.1:{self.server.server_port}/me/net"}
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [file | {"shouldIgnore": False} for file in files]}
        elif "/commit/" in self.path:
            answer = {"commitUrl": "http://127.0.0.1/me/net/commit/a", "commitOid": "a", "success": True}
        self._answer(answer)

    def do_GET(self):
        self._answer({"id": "me/net", "sha": "a", "siblings": []})

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    found.seen = []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_writes_every_format(name, tmp_path):
    """As a process of its own, whose settings are those of the command."""
    done = run("-m", "wdro_train.tools.export", str(STORED), "--format", name, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_command_and_the_hub(tmp_path, server):
    """From a run to a repository, by the command that a user types, against a hub of our own."""
    best = tmp_path / "runs/mine/checkpoints/best.ckpt"
    best.parent.mkdir(parents=True)
    shutil.copy(STORED, best)
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_secret", "HF_HOME": "hf"}
    words = ["-m", "wdro_train.tools.export", "runs/mine", "--format"]
    done = run(*words, "safetensors", "--push-to-hub", "me/net", cwd=tmp_path, env=settings)
    assert done.returncode == 0, done.stderr
    assert "export   runs/mine/export/safetensors" in done.stdout
    assert f"hub      {settings['HF_ENDPOINT']}/me/net" in done.stdout
    create, *_, commit = server.seen
    assert json.loads(create[2]) == {"name": "net", "organization": "me"}
    assert create[1] == commit[1] == "Bearer hf_secret"
    sent = [json.loads(line)["value"]["path"] for line in commit[2].splitlines()[1:]]
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors"]
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(wdro_train.load(tmp_path / "runs/mine/export/safetensors")(x), wdro_train.load(best)(x))
    again = run(*words, "safetensors", cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr == "error: runs/mine/export/safetensors is there already; choose another folder with --out, or remove it\n"  # fmt: skip  # noqa: E501
    nobody = run(*words, "onnx", "--push-to-hub", "me/net", cwd=tmp_path, env={"HF_HOME": str(tmp_path / "hf")})
    assert "the hub needs a token" in nobody.stderr
    assert not (tmp_path / "runs/mine/export/onnx").exists()
    gone = settings | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    alone = run(*words, "state_dict", "--push-to-hub", "me/net", cwd=tmp_path, env=gone)
    assert "the hub did not take me/net" in alone.stderr
    assert "runs/mine/export/state_dict is whole" in alone.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "onnx", "nowhere"], "there is nothing at nowhere"),
        (["--format", "tflite"], "invalid choice: 'tflite'"),
        ([], "--format"),
        (["--format", "onnx", "--push-to-hub", "net"], "net names no repository; write it like me/my_network"),
    ],
)
def test_wrong_arguments(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["export", *words])
    with pytest.raises((SystemExit, UserError)) as caught:
        command.main()
    assert sentence in capsys.readouterr().err + str(caught.value)


def test_a_private_repository_is_asked_for(monkeypatch, tmp_path):
    asked = {}

    class Api:
        def create_repo(self, repo, **options):
            asked.update(options)
            return "address"

        def upload_folder(self, **options):
            asked.update(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert hub.push(tmp_path, "me/net", private=True) == "address"
    assert asked["private"] is True
    assert asked["folder_path"] == tmp_path
