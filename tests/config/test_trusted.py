"""A file brings data, never code or secrets: hostile checkpoints are refused, and honest ones load as before."""

import copy
import functools
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
import types

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from shell import ROOT, run

from wdro_train.attacks import BoundaryAttack
from wdro_train.config.build import plain
from wdro_train.config.constructors import CONSTRUCTORS, construct, permitted
from wdro_train.config.resolvers import register_resolvers
from wdro_train.config.trusted import checked
from wdro_train.evaluation.networks import load_arrays, load_network
from wdro_train.models import load_weights, small_cnn
from wdro_train.tools import gradient_masking, judged_runs, step_cost
from wdro_train.training.build import build_module
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.training.module import CONFIG_KEY, RobustClassifier
from wdro_train.utils.errors import UserError
from wdro_train.utils.plain_values import plain_values

CONF = ROOT / "conf"
SECRET = "7c1d-not-for-reports"
JUDGE = ["poster=null", "limit=8", "distances.steps=2", "pictures=0", "accelerator=cpu", "hydra.run.dir=out"]
TORCH_ADVICE = ("weights_only", "safe_globals", "can still be loaded", "trust the source")


@functools.cache
def configuration(*overrides):
    """What train.py keeps in a checkpoint."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["name=some", "run_dir=some", "callbacks={}", "logger=none", *overrides])


@functools.cache
def honest():
    """Configuration and weights of a small network."""
    cfg = configuration("model.width=4", "attack=worst_case", "objective=w_trades")
    return plain(cfg), build_module(cfg).state_dict()


def written(path, config, weights=None):
    torch.save({"state_dict": honest()[1] if weights is None else weights, CONFIG_KEY: config}, path)
    return path


def payloads(target):
    """Constructors that today's prefix lets pass, or that Hydra knows no harm of, with arguments that make a file."""
    touch = f"touch {target}"
    return [
        {"_target_": "wdro_train.utils.files.write_text", "path": str(target), "text": "x"},
        {"_target_": "wdro_train.config.slurm.os.system", "command": touch},
        {"_target_": "wdro_train.config.slurm.subprocess.run", "args": ["touch", str(target)]},
        {"_target_": "wdro_train.config.slurm.tempfile._os.mkdir", "path": str(target)},
        {
            "_target_": "wdro_train.config.slurm.os.posix_spawnp",
            "path": "touch",
            "argv": ["touch", str(target)],
            "env": {},
        },
        {"_target_": "wdro_train.cli.sweep_table.Path.touch", "self": str(target)},
        {"_target_": "torch.save", "obj": 1, "f": str(target)},
        {"_target_": "pathlib.Path.mkdir", "self": str(target)},
        {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system", "command": touch}},
    ]


def places(tree, path=()):
    """Every place in a tree at which a value stands."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in parts:
        yield (*path, key)
        yield from places(value, (*path, key))


def put(tree, path, value):
    """A copy of a tree with another value at a place."""
    changed = copy.deepcopy(tree)
    functools.reduce(lambda node, key: node[key], path[:-1], changed)[path[-1]] = value
    return changed


def use_everything(path, **named):
    """Whatever any command builds of a checkpoint."""
    network = load_network(path, **named)
    load_arrays(network.config, "test", 8)
    for group in ("attack", "objective"):
        network.construct(group)


def refused(read, *arguments, **named):
    """The sentence of a refusal; None if there is none."""
    try:
        read(*arguments, **named)
    except UserError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    return text


# ---- the list


def named_in(path):
    return [str(value) for key, value in _pairs(yaml.safe_load(path.read_text())) if key == "_target_"]


def _pairs(tree):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield key, value
        yield from _pairs(value)


def test_the_list_is_what_conf_uses():
    named = {path: named_in(path) for path in CONF.rglob("*.yaml")}
    everything = {target for found in named.values() for target in found}
    for group, constructors in CONSTRUCTORS.items():
        here = {target for path, found in named.items() if path.parent.name == group for target in found} - {"???"}
        assert here <= constructors <= everything
    for path, found in named.items():
        group = path.parent.name
        for target in found if group not in CONSTRUCTORS else ():
            with pytest.raises(UserError, match="asks to run"):
                checked({"_target_": target}, group, "a file")


@pytest.mark.parametrize("group", CONSTRUCTORS)
def test_every_name_is_a_constructor_of_its_own_group(group):
    own = f"wdro_train.{group if group == 'data' else group + 's'}"
    marginals = {"wdro_train.attacks.DualAscent", "wdro_train.attacks.Fixed"}  # which objectives take as well
    for name in CONSTRUCTORS[group]:
        folder = "wdro_train.attacks" if group == "objective" and name in marginals else own
        made = getattr(importlib.import_module(folder), name.rpartition(".")[2])
        assert inspect.isclass(made) or inspect.isfunction(made)
        assert name == f"{folder}.{made.__name__}"
        assert made.__module__.startswith(f"{folder}.")


def reachable():
    """Every callable that a dotted name under this package reaches, through the imports of its modules."""
    for module in pkgutil.walk_packages(__import__("wdro_train").__path__, "wdro_train."):
        if "__main__" not in module.name:
            __import__(module.name)
    found, seen = set(), set()
    waiting = [(name, part, 0) for name, part in sys.modules.items() if name.partition(".")[0] == "wdro_train"]
    while waiting:
        name, module, depth = waiting.pop()
        if (id(module), depth) in seen and depth:
            continue
        seen.add((id(module), depth))
        for key, value in list(vars(module).items()):
            if isinstance(value, types.ModuleType):
                waiting += [(f"{name}.{key}", value, depth + 1)] if depth < 2 else []
            elif callable(value):
                found.add(f"{name}.{key}")
    return sorted(found)


def test_nothing_else_is_reached_through_this_package():
    names = reachable()
    assert len(names) > 3000
    for known in (".os.system", ".torch.save", ".subprocess.run", ".files.write_text"):
        assert any(name.endswith(known) for name in names)
    for group, constructors in CONSTRUCTORS.items():
        for name in set(names) - constructors:
            with pytest.raises(UserError, match="asks to run"):
                checked({"_target_": name}, group, "a file")


# ---- generated hostile configurations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


NAMED = {
    "nothing": {},
    "data": {"data": {"_target_": "wdro_train.data.Digits", "seed": "${seed}", "delta": "${data.delta}"}},
    "model": {"model": {"_target_": "wdro_train.models.small_cnn", "mean": "${data.mean}", "width": 4}},
    "target": {"model": {"_target_": "wdro_train.models.small_cnn"}},
    "argument": {"data": {"val_fraction": 0.3}},
}
NAMED["data"]["data"] |= {"shape": [1, 8, 8], "num_classes": 10, "mean": [0.3], "std": [0.4], "delta": {"linf": 0.1}}
NAMED["model"]["model"] |= {"shape": "${data.shape}", "num_classes": 10, "std": "${data.std}"}
MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def named(choice):
    return {group: OmegaConf.create(node) for group, node in NAMED[choice].items()}


@pytest.mark.parametrize("choice", NAMED)
def test_an_honest_checkpoint_loads(choice, folder):
    use_everything(written(folder / "honest.ckpt", honest()[0]), **named(choice))


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_constructors_at_any_place(data, folder):
    """A payload in place of any value, or beside it, or as an interpolation's aim: nothing of it is run."""
    config, target = honest()[0], folder / "made"
    payload = data.draw(st.sampled_from(payloads(target)))
    place = data.draw(st.sampled_from(sorted(places(config), key=str)))
    how = data.draw(st.sampled_from(["bare", "listed", "nested", "referred", "optional"]))
    value = {"bare": payload, "listed": [payload], "nested": {"a": {"b": payload}}, "referred": "${evil}"}
    value["optional"] = {"_target_": config["model"]["_target_"], "options": {"x": payload}}
    hostile = put(config | {"evil": payload}, place, value[how])
    choice = data.draw(st.sampled_from(sorted(NAMED)))
    path = written(folder / "hostile.ckpt", hostile)
    refusal = refused(use_everything, path, **named(choice))
    if refusal is None:
        assert place[0] not in CONSTRUCTORS or place[:2] == ("data", "augment") or choice != "nothing"
        assert how != "referred"
    assert not target.exists()


@MANY
@given(data=st.data())
def test_interpolations_at_any_place(data, folder):
    """Whatever a string of a file refers to, it is neither looked up nor shown."""
    config = honest()[0]
    text = data.draw(
        st.sampled_from(["${oc.env:WDRO_SECRET}", "x${oc.env:WDRO_SECRET}", "\\${${seed}}", "${.x}", "${"])
    )
    place = data.draw(st.sampled_from(sorted(places(config), key=str)))
    as_key = data.draw(st.booleans())
    path = written(folder / "hostile.ckpt", put(config, place, {text: 1} if as_key else text))
    os.environ["WDRO_SECRET"] = SECRET
    with pytest.raises(UserError, match="is not looked up") as caught:
        use_everything(path, **named(data.draw(st.sampled_from(sorted(NAMED)))))
    assert SECRET not in str(caught.value)


def test_pieces_of_an_interpolation_do_not_become_one(folder):
    """What the user's references put together is not looked up either."""
    config = honest()[0] | {"one": "$", "other": "{oc.env:WDRO_SECRET}"}
    os.environ["WDRO_SECRET"] = SECRET
    node = OmegaConf.create({"_target_": "wdro_train.data.Digits", "name": "${one}${other}"})
    with pytest.raises(UserError, match="is not looked up") as caught:
        load_network(written(folder / "pieces.ckpt", config), data=node)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_convert_", "_recursive_", "_execution_whitelist_", "_new_"])
@pytest.mark.parametrize("place", [("model",), ("data", "delta"), ("attack", "marginal"), ("objective",)])
def test_special_keys(key, place, folder):
    path = written(folder / "special.ckpt", put(honest()[0], (*place, key), True))
    with pytest.raises(UserError, match=f"{key}, which no file may set"):
        use_everything(path)


def loop():
    inside = {}
    inside["inside"] = inside
    return inside


def deep(levels):
    return functools.reduce(lambda inner, _: [inner], range(levels), 1)


def wide(levels):
    return functools.reduce(lambda inner, _: [inner, inner], range(levels), 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (loop(), "50 levels"),
        (deep(200), "50 levels"),
        (wide(40), "100000 values"),
        (torch.ones(2), "a Tensor"),
        ((1, 2), "a tuple"),
        ({1, 2}, "a set"),
        (torch.float32, "a dtype"),
        (2**70, "64 bits"),
        ({(1, 2): 3}, "a tuple"),
        (b"x", "a bytes"),
        ("???", "not looked up"),
    ],
)
def test_only_plain_values(value, message, folder):
    path = written(folder / "odd.ckpt", honest()[0] | {"odd": value})
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config", [None, [], "x", {}, {"model": 1, "data": 2}, {"model": {}, "data": {}}, honest()[0] | {"data": None}]
)
def test_configurations_of_another_form(config, folder):
    with pytest.raises(UserError):
        use_everything(written(folder / "form.ckpt", config))


# ---- what other libraries are told

OPTIONS = [
    {"trust_remote_code": True},
    {"trust_remote_code": False},
    {"code_revision": "main"},
    {"auto_map": {"AutoConfig": "someone/else--code.Config"}},
    {"attn_implementation": "someone/kernels"},
    {"hidden_act": "https://example.org/x"},
    {"backbone": "someone/else"},
    {"checkpoint_path": "beside.pt"},
    {"pretrained_cfg": {"url": "https://example.org/x", "file": "x"}},
    {"token": "x"},
    {"_commit_hash": "x"},
    {"proxies": {"https": "http://example.org"}},
    {"pretrained": True},
    {"weights": "DEFAULT"},
    {"x": [["y"]]},
    ["trust_remote_code"],
]


@pytest.mark.parametrize("kind", ["huggingface", "timm", "torchvision"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_a_file(kind, options, folder):
    model = honest()[0]["model"] | {"_target_": f"wdro_train.models.{kind}_model", "name": "resnet18"}
    path = written(folder / "options.ckpt", honest()[0] | {"model": model | {"options": options}})
    with pytest.raises(UserError, match=r"model\.options"):
        load_network(path)
    if isinstance(options, dict) and "trust_remote_code" in options:
        with pytest.raises(UserError, match=r"trust_remote_code"):
            load_network(written(folder / "options.ckpt", honest()[0] | {"model": model | options}))


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/else", "https://example.org/x", "local-dir:x", r"\\example\x", "a::b"]
)
@pytest.mark.parametrize(("group", "key"), [("model", "name"), ("data", "root"), ("data", "name")])
def test_addresses_of_a_file(group, key, name, folder):
    path = written(folder / "address.ckpt", put(honest()[0], (group, key), name))
    with pytest.raises(UserError, match=f"points {group}.{key} at"):
        load_network(path)


def test_options_in_use_are_let_pass():
    options = {"image_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "depths": [2, 2], "img_size": None}
    checked({"_target_": "wdro_train.models.timm_model", "options": options}, "model", "a file")


def test_a_file_downloads_nothing(folder):
    data = {"_target_": "wdro_train.data.TorchvisionDataModule", "name": "CIFAR10", "root": str(folder / "none")}
    data = honest()[0]["data"] | data | {"download": True}
    model = honest()[0]["model"] | {"weights": "nowhere.pt"}
    network = load_network(written(folder / "download.ckpt", honest()[0] | {"data": data, "model": model}))
    with pytest.raises(UserError, match="CIFAR10 is missing"):
        load_arrays(network.config, "test")
    assert not (folder / "none").exists()


def test_remote_code_is_the_users_choice(tmp_path, monkeypatch):
    """A folder of transformers that brings code: it runs if the user says so, and not for a file."""
    transformers = pytest.importorskip("transformers")
    from wdro_train.models import huggingface_model

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    net = tmp_path / "net"
    net.mkdir()
    (net / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}')
    (net / "code.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(tmp_path / 'made')!r}, 'w').close()\n"
        "class Config(PretrainedConfig):\n    model_type = 'own'\n"
    )
    asked = {"shape": [1, 8, 8], "num_classes": 10, "mean": [0.0], "std": [1.0], "name": str(net), "pretrained": False}
    with pytest.raises(UserError, match="no image classifier that transformers can read"):
        huggingface_model(**asked)
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="no image classifier that transformers can read"):
        huggingface_model(**asked, options={"trust_remote_code": True})  # its configuration has no network
    assert (tmp_path / "made").exists()


# ---- pickles


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def archives(folder):
    """Files that run a command when they are loaded without protection, in every format of torch, and odd ones."""
    evil = {"state_dict": {"x": Evil(folder / "made")}, CONFIG_KEY: {}}
    torch.save(evil, folder / "zip.pt")
    torch.save(evil, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "bare.pt").write_bytes(pickle.dumps(evil))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "script.pt"))
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    return [folder / f"{name}.pt" for name in ("zip", "old", "bare", "script", "module")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pickles_are_refused_without_advice_to_run_them(tmp_path):
    for file in archives(tmp_path):
        for read in (read_checkpoint, lambda path: load_weights(small_cnn((1, 8, 8), 10, [0.0], [1.0]), path)):
            with pytest.raises(UserError, match="cannot be read") as caught:
                read(file)
            assert "\n" not in str(caught.value)
            assert not any(advice in str(caught.value) for advice in TORCH_ADVICE)
            if file.stem in ("zip", "module"):
                assert "system" in str(caught.value) or "Linear" in str(caught.value)
                assert "can run code" in str(caught.value)
    assert not (tmp_path / "made").exists()
    subprocess.run(
        [sys.executable, "-c", f"import pickle; pickle.load(open({str(tmp_path / 'bare.pt')!r}, 'rb'))"], check=False
    )
    assert (tmp_path / "made").exists(), "the pickle is not malicious"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused(data, folder):
    """Any bytes anywhere in a checkpoint: it is read, or refused in one sentence."""
    good = written(folder / "good.ckpt", honest()[0]).read_bytes()
    place = data.draw(st.integers(0, len(good) - 1) | st.integers(0, 4000))
    damage = data.draw(st.binary(min_size=1, max_size=20))
    end = data.draw(st.sampled_from([len(good), place + len(damage)]))
    (folder / "damaged.ckpt").write_bytes((good[:place] + damage + good[place + len(damage) :])[:end])
    refusal = refused(load_network, folder / "damaged.ckpt") or ""
    assert not any(advice in refusal for advice in TORCH_ADVICE)


# ---- the commands


def secret_free(folder):
    return all(SECRET.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "how", "more", "message"),
    [
        (
            ("model", "mean"),
            "bare",
            ["data=digits"],
            "asks to run wdro_train.utils.files.write_text as model.mean._target_",
        ),
        (("model", "mean"), "referred", [], "has ${evil} at model.mean"),
        (("seed",), "bare", ["data=digits"], None),  # `data.seed: ${seed}` is the user's reference to it
    ],
)
def test_evaluate_runs_nothing_of_a_file(place, how, more, message, tmp_path):
    payload = payloads(tmp_path / "made")[0]
    config = put(honest()[0] | {"evil": payload}, place, payload if how == "bare" else "${evil}")
    written(tmp_path / "evil.ckpt", config)
    done = run("evaluate.py", "ckpt_path=evil.ckpt", *more, *JUDGE, cwd=tmp_path)
    assert not (tmp_path / "made").exists()
    assert "Traceback" not in done.stderr
    assert done.returncode == (message is not None)
    assert message is None or message in done.stderr


@pytest.mark.slow
def test_secrets_stay_where_they_are(tmp_path):
    written(tmp_path / "curious.ckpt", honest()[0] | {"name": "${oc.env:WDRO_SECRET}"})
    for arguments in (
        ["evaluate.py", "ckpt_path=curious.ckpt", *JUDGE],
        ["train.py", "ckpt_path=curious.ckpt", "model.width=4", "logger=csv", "hydra.run.dir=out"],
        ["train.py", "finetune.ckpt_path=curious.ckpt", "model.width=4", "logger=csv", "hydra.run.dir=out"],
    ):
        done = run(*arguments, cwd=tmp_path, env={"WDRO_SECRET": SECRET})
        assert done.returncode == 1
        assert "is not looked up" in done.stderr
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stderr + done.stdout
        assert secret_free(tmp_path)


@pytest.mark.slow
def test_the_user_names_constructors_of_others(tmp_path):
    """`shell.dropout_cnn` is no constructor of this package: refused, unless the user names it, in any of the ways."""
    config = put(honest()[0], ("model", "_target_"), "shell.dropout_cnn")
    from shell import dropout_cnn

    arguments = {key: value for key, value in config["model"].items() if key not in ("_target_", "weights")}
    weights = RobustClassifier(dropout_cnn(**arguments)).state_dict()
    path = written(tmp_path / "own.ckpt", config, weights)
    refused = run("evaluate.py", "ckpt_path=own.ckpt", *JUDGE, cwd=tmp_path)
    assert refused.returncode == 1
    assert "asks to run shell.dropout_cnn as model._target_" in refused.stderr
    assert "name it yourself, with model._target_=shell.dropout_cnn (evaluate.py)" in refused.stderr
    for sign in ("", "+"):
        given = ["ckpt_path=own.ckpt", f"{sign}model._target_=shell.dropout_cnn"]
        trusted = run("evaluate.py", *given, *JUDGE, f"hydra.run.dir=judged{sign}", cwd=tmp_path)
        assert trusted.returncode == 0, trusted.stderr
    named = OmegaConf.create(config["model"])
    assert load_network(path, model=named).config["model"]["_target_"] == "shell.dropout_cnn"
    for main, options in (
        (gradient_masking.main, ["--steps=1", "--limit=8"]),
        (step_cost.main, ["--repeats=1", "--batch=8"]),
    ):
        with pytest.raises(UserError, match="--allow"):
            main([str(path), *options])
    assert gradient_masking.main([str(path), "--steps=1", "--limit=8", "--allow=shell.dropout_cnn"])


def test_constructors_renamed_since_are_still_found(tmp_path):
    old = put(honest()[0], ("attack", "_target_"), "wdro_train.attacks.WorstCase")
    network = load_network(written(tmp_path / "old.ckpt", old))
    assert network.config["attack"]["_target_"] == "wdro_train.attacks.BoundaryAttack"
    assert isinstance(network.construct("attack"), BoundaryAttack)


def test_the_study_builds_what_is_listed_or_allowed(tmp_path):
    """The attack and the objective of a training configuration are checked like the model."""
    made = tmp_path / "made"
    for place in (("attack",), ("attack", "marginal"), ("objective",), ("objective", "beta")):
        for payload in payloads(made)[:3]:
            network = load_network(written(tmp_path / "evil.ckpt", put(honest()[0], place, payload)))
            with pytest.raises(UserError, match=r"asks to run .* name it yourself, with --allow"):
                judged_runs.passes(network, load_arrays(network.config, "train", 8))
            assert not made.exists()
    own = put(honest()[0], ("objective", "_target_"), "wdro_train.objectives.mart.Mart")
    path = written(tmp_path / "own.ckpt", own)
    with pytest.raises(UserError, match="--allow"):
        load_network(path).construct("objective")
    assert load_network(path, allowed={"wdro_train.objectives.mart.Mart"}).construct("objective").beta == 6.0
    unfit = load_network(written(tmp_path / "unfit.ckpt", put(honest()[0], ("objective", "gamma"), 1)))
    with pytest.raises(UserError, match=r"cannot be made as configured .*gamma"):
        unfit.construct("objective")


# ---- honest files

FAMILY = [
    (path.parent.name, path.stem)
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name in (*CONSTRUCTORS, "augment", "experiment", "method") and path.stem != "own"
]
NEEDS = {
    ("model", "huggingface"): ["model.name=someone/vit", "+model.options.image_size=8"],
    ("model", "robustbench"): ["model.name=Wong2020Fast"],
    ("model", "onnx"): ["model.path=net.onnx"],
    ("data", "huggingface"): ["data.name=someone/images", "data.num_classes=10"],
    ("data", "image_folder"): ["data.num_classes=10"],
    ("data", "numpy"): ["data.images=x.npy", "data.labels=y.npy"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), FAMILY)
def test_what_train_writes_is_let_pass(group, option):
    """Every configuration that the groups compose to is one of plain values and listed constructors."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"{group}={option}", "name=some", "run_dir=some", *NEEDS.get((group, option), [])])
    tree = plain_values(plain(cfg), "a file")
    for part in CONSTRUCTORS:
        checked(tree[part] | ({"augment": None} if part == "data" else {}), part, "a file")


@pytest.mark.parametrize(
    "model",
    [
        ["model=small_cnn", "model.width=4"],
        ["model=preact_resnet18", "model.width=4"],
        ["model=wrn_28_10", "model.depth=10", "model.width=1"],
        ["model=torchvision", "model.name=shufflenet_v2_x0_5", "model.small_stem=true", "model.pretrained=true"],
        ["model=timm", "model.name=test_resnet", "model.pretrained=true", "+model.options.drop_rate=0.1"],
    ],
    ids=lambda model: model[0],
)
def test_what_train_writes_is_built(model, tmp_path):
    """Weights of a zoo are not asked for again: nothing is downloaded."""
    if "timm" in model[0]:
        pytest.importorskip("timm")
    cfg = configuration(*model, "augment=crop_flip")
    random = OmegaConf.merge(cfg, {"model": {"pretrained": False}}) if "pretrained" in cfg.model else cfg
    module = build_module(random)
    use_everything(written(tmp_path / "a.ckpt", plain(cfg), module.state_dict()))


def test_hydra_is_told_what_may_run():
    """Where `instantiate` takes a list of what may run, nothing else does, whatever the checks let pass."""
    node = {"_target_": "wdro_train.objectives.Mart", "beta": 2.0}
    assert construct(node, only=permitted("objective")).beta == 2.0
    if "_execution_whitelist_" not in inspect.signature(instantiate).parameters:
        pytest.skip("this Hydra takes no list")
    with pytest.raises(InstantiationException, match="whitelist"):
        construct(node, only=permitted("attack"))
