"""Networks of ONNX files: the same logits, gradients, and a sentence for what is no such network."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from shell import run
from torch import nn

from wdro_train.models import onnx_model, small_cnn
from wdro_train.models import onnx_models as room
from wdro_train.utils.errors import UserError

if find_spec("onnx2torch") is None or find_spec("onnx") is None:
    pytest.skip("onnx2torch is not installed", allow_module_level=True)
import onnx

SHAPE = (1, 8, 8)


class Mean(nn.Module):
    """Ends in a mean over positions, whose axes newer files hand over as an input."""

    def forward(self, x):
        return x.mean((2, 3))


def made(kind):
    torch.manual_seed(1)
    if kind == "small_cnn":
        return small_cnn(SHAPE, 10, [0.3], [0.4], 4).eval()
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Mean(), nn.Linear(6, 10))
    network(torch.rand(20, *SHAPE))
    return network.eval()


def exported(network, path, new=True, batch=None, **options):
    """By the exporter of torch.export or the older one; with a first dimension of any size, or a fixed one."""
    if batch is None and new:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif batch is None:
        options |= {"input_names": ["images"], "dynamic_axes": {"images": {0: "batch"}}}
    pytest.importorskip("onnxscript")
    torch.onnx.export(network, (torch.rand(batch or 2, *SHAPE),), path, dynamo=new, verbose=False, **options)
    return str(path)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """The file of `made("small_cnn")`, which takes a second to write."""
    return Path(exported(made("small_cnn"), tmp_path_factory.mktemp("onnx") / "net.onnx"))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", ["small_cnn", "batch norm"])
@pytest.mark.slow
@pytest.mark.covers
def test_the_same_logits_and_gradients(kind, new, tmp_path):
    network = made(kind)
    found = onnx_model(exported(network, tmp_path / "net.onnx", new=new), SHAPE).eval()
    x = torch.rand(5, *SHAPE, requires_grad=True)
    ours, theirs = (torch.autograd.grad(net(x).square().sum(), x)[0] for net in (network, found))
    assert torch.allclose(found(x), network(x), atol=1e-5)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert sum(p.numel() for p in found.parameters()) >= sum(p.numel() for p in network.parameters()) - 12


def test_names_in_a_file_are_not_code(tmp_path, small_file):
    """onnx2torch writes Python code with the names of a file in it."""
    path = tmp_path / "net.onnx"
    proto = onnx.load(small_file)
    for node in proto.graph.node:
        node.name = f'{node.name}") or open("{tmp_path}/written", "w") or ("'
    onnx.save(proto, path)
    assert onnx_model(str(path), SHAPE)(torch.rand(2, *SHAPE)).shape == (2, 10)
    assert not (tmp_path / "written").exists()


def test_what_is_no_such_network_is_refused(tmp_path, monkeypatch, small_file):
    path = tmp_path / "net.onnx"
    with pytest.raises(UserError, match=r"no file model.path=.*none.onnx"):
        onnx_model(str(tmp_path / "none.onnx"), SHAPE)
    path.write_bytes(b"no network")
    with pytest.raises(UserError, match=r"net.onnx cannot be read \(.*; export the network again"):
        onnx_model(str(path), SHAPE)
    onnx.save(onnx.load(small_file), path)
    with pytest.raises(UserError, match=r"does not take images of shape \(3, 8, 8\)"):
        onnx_model(str(path), (3, 8, 8))
    proto = onnx.load(path)
    next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Hardmax"
    onnx.save(proto, path)
    with pytest.raises(UserError, match=r"not read by onnx2torch \(.*Hardmax.*opset 16 or lower"):
        onnx_model(str(path), SHAPE)
    onnx.save(onnx.load(small_file), path)

    def wrong(onnx, proto, constants):
        next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Neg"

    monkeypatch.setattr(room, "_say_as_before", wrong)
    with pytest.raises(UserError, match=r"computes other logits in PyTorch|is not read by onnx2torch"):
        onnx_model(str(path), SHAPE)


@pytest.mark.parametrize(
    ("truth", "weight", "sentence"),
    [
        (False, torch.full((64, 10), float("nan")), "gives NaN, infinite or no logits"),
        (False, torch.zeros(64, 0), "gives NaN, infinite or no logits"),
        (True, torch.zeros(64, 10), None),
    ],
)
def test_what_a_file_answers_that_is_no_logits(truth, weight, sentence, tmp_path):
    """Truth values are left to whoever asks for logits, as those of any network are; nothing ends in a traceback."""
    made, kind = onnx.helper, onnx.TensorProto
    operations = [made.make_node("Flatten", ["x"], ["flat"]), made.make_node("MatMul", ["flat", "w"], ["y"])]
    answer = ("truth", kind.BOOL) if truth else ("y", kind.FLOAT)
    if truth:
        operations.append(made.make_node("Greater", ["y", "y"], ["truth"]))
    graph = made.make_graph(
        operations, "g", [made.make_tensor_value_info("x", kind.FLOAT, ["b", *SHAPE])],
        [made.make_tensor_value_info(*answer, ["b", weight.shape[1]])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(made.make_model(graph, opset_imports=[made.make_opsetid("", 16)], ir_version=8), path)
    if sentence is None:
        assert onnx_model(str(path), SHAPE)(torch.rand(2, *SHAPE)).dtype == torch.bool
        return
    with pytest.raises(UserError, match=sentence):
        onnx_model(str(path), SHAPE)


def test_external_weights_outside_the_folder_are_refused(tmp_path, small_file):
    """A file names a second one, which may lie anywhere."""
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside/net.onnx"
    proto = onnx.load(small_file)
    onnx.save(proto, path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert onnx_model(str(path), SHAPE)(torch.rand(2, *SHAPE)).shape == (2, 10)
    (tmp_path / "inside/net.data").rename(tmp_path / "net.data")
    for place in ("../net.data", str(tmp_path / "net.data")):
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = place
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(UserError, match=r"net\.onnx cannot be read"):
            onnx_model(str(path), SHAPE)


def test_a_network_for_one_image_is_refused(tmp_path):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(64, 10)

        def forward(self, x):
            return self.last(x.reshape(1, 64))

    path = exported(One().eval(), tmp_path / "one.onnx", new=False, batch=1)
    with pytest.raises(UserError, match=r"does not take 3 images at once .*first dimension of any size"):
        onnx_model(path, SHAPE)


@pytest.mark.slow
def test_it_is_judged_and_trained_on_from_the_command_line(tmp_path):
    exported(made("batch norm"), tmp_path / "net.onnx")
    net = ["model=onnx", "model.path=net.onnx"]
    judge = ["poster=null", "limit=16", "distances.steps=2", "pictures=0", "accelerator=cpu"]
    judged = run("evaluate.py", *net, "data=digits", *judge, "hydra.run.dir=out", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    found = json.loads((tmp_path / "out/report.json").read_text())["models"][0]
    assert (found["name"], found["checkpoint"]) == ("net", "net.onnx")
    quick = ["logger=none", "callbacks.images=null", "callbacks.progress=null", "trainer.max_epochs=1", "trainer=cpu"]
    quick += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "data.eval_batch_size=16"]
    trained = run("train.py", *net, *quick, "model.normalize=[0.3,0.4]", "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    again = run("evaluate.py", "ckpt_path=run/checkpoints/best.ckpt", *judge, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
