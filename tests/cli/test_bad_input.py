"""Both doors under bad input and signals: one sentence, the right exit code, nothing left behind, nothing accepted."""

import copy
import csv
import math
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from shell import PATIENCE, ROOT, run, start
from torch.utils.data import DataLoader, Dataset

from wdro_train.cli import schemas
from wdro_train.cli.endings import unexpected
from wdro_train.cli.error_messages import sentence
from wdro_train.cli.schemas.check import refusal, resolve
from wdro_train.cli.schemas.constructors import part_of
from wdro_train.cli.schemas.trial import try_out
from wdro_train.config import writable
from wdro_train.config.resolvers import register_resolvers
from wdro_train.config.signatures import located, taken
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.utils.errors import UserError

QUICK = ["trainer=cpu", "logger=csv", "callbacks.images=null", "callbacks.progress=null", "model.width=4"]
QUICK += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "attack.steps=1", "test=false"]
QUICK += ["data.eval_batch_size=64"]
ENDLESS = [*QUICK, "trainer.max_epochs=100000"]
CONF = ROOT / "conf"

# Wrong for a value of that type, whatever the key: of another type, not a number, out of every range.
BAD = {
    bool: ["maybe", 1.5, -1, math.nan, [True], None, ""],
    int: [1.5, -3, "abc", math.nan, math.inf, [1], {"a": 1}, True, "", "1"],
    float: [-3.0, "abc", math.nan, [0.5], {"a": 1}, True, ""],
    str: ["", ["abc"], {"a": 1}, True, math.nan],
    list: [5, "abc!", {"a": 1}, True, math.nan],
    dict: [5, "abc", ["abc"], True, ""],
}
# What is null by default says nothing about its type.
LIMIT = [1.5, -1, 0, "abc", [1], math.nan, ""]
RADII = [5, "abc", [], [-1], [math.nan], [math.inf], [None]]
OPTIONAL = {
    "ckpt_path": ["", 5, {"a": 1}],
    "labels": ["", 5, [], [5], [""], {"a": 1}],
    "finetune.ckpt_path": ["", 5, ["a.ckpt"]],
    "data.augment": [5, "flip", ["flip"], {"flip": 5}],
    "model.weights": ["", 5, ["a"]],
    "trainer.limit_train_batches": LIMIT,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_test_batches": [one for one in LIMIT if one != 0],
    "trainer.gradient_clip_val": [-1, "abc", math.nan, [1], ""],
    "attack.p": [0.5, 0, -1, "abc", math.nan, [2], ""],
    "attack.norm": [0.5, 0, 3, "abc", math.nan, [2], ""],
    "attack.delta": [-1, "abc", math.nan, math.inf, [0.1], "1/0", ""],
    "curve.deltas": RADII,
    "poster.deltas": [*RADII, [0]],
    "poster.p": [5, "abc", [], [0.5], [math.nan]],
    "certificate.method": ["foo", 5, "", ["crown"]],
    "limit": LIMIT,
}
# A choice, a number in a range, a list: what the type alone does not tell.
FURTHER = {
    "train": {
        "attack.p": [0.5, 0, 1], "attack.norm": [0.5, 0], "attack.delta": [-1, math.inf, "8/0"],
        "attack.steps": [0], "attack.step_size": [0], "attack.keep": ["chepest"], "attack.loss": ["mse"],
        "attack.scope": ["set"], "attack.batch_norm": ["off"], "attack._target_": ["foo.Bar",
        "wdro_train.attacks.Nope"],
        "data.batch_size": [0], "data.eval_batch_size": [0], "data.val_fraction": [0, 1, 2], "data.num_classes": [0, 1],
        "data.shape": [[8, 8], [1, 8], [0, 8, 8], [1, 8.5, 8]], "data.std": [[0], [-1], [], [math.nan]],
        "data.mean": [[], ["a"]], "data.delta": [{"linf": -1}, {"linf": "abc"}],
        "model.width": [0], "model.num_classes": [0], "optimizer.lr": [math.inf],
        "optimizer._target_": ["torch.optim.Adan"],
        "scheduler.T_max": [0, None], "trainer.devices": [0, [], "0", "abc", None], "trainer.max_epochs": [0],
        "trainer.accelerator": ["foo"], "trainer.precision": ["foo", 31], "trainer.accumulate_grad_batches": [0],
        "callbacks.adversary.attack": [None], "callbacks.adversary.val_attack.attacks": [[], [5]],
        "callbacks.adversary": [None], "callbacks.checkpoint.mode": ["up"], "callbacks.checkpoint.save_top_k": [-2],
        "callbacks.images.number": [0], "callbacks.images.every_n_epochs": [0], "callbacks.checkpoint": [5, [1]],
        "finetune.init": ["new"], "finetune.freeze": [[5], 5], "seed": [2**32], "callbacks": [None],
        "scheduler": [None],
        "logger.wandb.log_model": ["some"], "attack.stepz": [3], "data.batchsize": [3], "callbacks.history.seeds": [3],
    },
    "evaluate": {
        "distances.steps": [0], "distances.restarts": [0],
        "curve.p": [[], [0.5], ["abc"], [math.nan], None], "curve.alpha": [0, 1, math.inf], "curve.sided": ["both"],
        "poster.losses": [[], ["mse"], [5]], "poster.pgd_steps": [0], "certificate.sigma": [0],
        "certificate.samples": [0],
        "certificate.alpha": [0, 1], "split": ["dev"], "batch_size": [0], "limit": [0], "expectation": [0],
        "precision": ["foo", 16, None], "channels_last": [5], "compile": ["often"],
        "accelerator": ["foo"], "devices": [0, [], "abc", None], "seed": [2**32], "distances": [None], "peers": [None],
    },
}  # fmt: skip
# Typed as a number or a word, and right as another: orders, radii and fractions; names; what may be a list or a word.
FINE = {
    "train": {
        ("finetune.noise", "0.5"), ("finetune.freeze", "abc!"), ("trainer.devices", "1"), ("data.num_workers", 0),
        ("trainer.deterministic", None), ("trainer.enable_model_summary", None),
        ("callbacks.checkpoint.save_on_train_epoch_end", None),
        ("callbacks.last_checkpoint.save_on_train_epoch_end", None),
    },
    "evaluate": {("devices", "1")},
}  # fmt: skip
FREE = {"logger.csv.name", "logger.csv.version", "logger.wandb.name"}


def composed(door, *overrides):
    """The configuration as `hydra.main` has it before a run."""
    register_resolvers()
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(door, list(overrides), return_hydra_config=True)
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def values():
    """The plain values of both doors."""
    found = {}
    before = HydraConfig.instance().cfg
    for door in ("train", "evaluate"):
        cfg = composed(door)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = "."
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        found[door] = resolve(cfg)[0]
    HydraConfig.instance().cfg = before
    return found


def leaves(node, path=""):
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        where = f"{path}.{key}" if path else str(key)
        yield where, value
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            yield from leaves(value, where)


def changed(values, path, value):
    """The same values with another one at a dotted key."""
    found = copy.deepcopy(values)
    *above, last = path.split(".")
    node = found
    for key in above:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(last) if isinstance(node, list) else last] = value
    return found


def cases(door, values):
    for number, (path, value) in enumerate(leaves(values)):
        key = path.rpartition(".")[2]
        if key == "_partial_":
            continue
        bad = BAD.get(type(value), [])
        if path in FREE:
            bad = [one for one in bad if isinstance(one, dict)]
        if key in ("p", "norm", "delta", "noise") and not isinstance(value, dict | list):
            bad = ["abc", math.nan, [2], True, "", -3]
        if value is None:
            bad = OPTIONAL.get(path, [])
        # Not every value for every key: neighbours get others, so that each kind of key meets each value.
        for one in [bad[(number + step) % len(bad)] for step in range(min(len(bad), 4))]:
            if not any(path == p and one == v and type(one) is type(v) for p, v in FINE[door]):
                yield path, one
    for path, several in FURTHER[door].items():
        for one in several:
            yield path, one


@pytest.mark.parametrize("door", ["train", "evaluate"])
def test_generated_bad_values(door, values):
    """Every key of the door with values that cannot work: each is refused in one sentence that names the key."""
    assert refusal(values[door], door) is None
    try_out(values[door], door)
    accepted, unclear, count = [], [], 0
    for path, value in cases(door, values[door]):
        count += 1
        bad = changed(values[door], path, value)
        said = refusal(bad, door)
        if said is None:
            try:
                try_out(bad, door)
            except UserError as error:
                said = str(error)
        if said is None:
            accepted.append((path, value))
        elif "\n" in said or not re.search(r"[;(]", said) or not any(part in said for part in path.split(".")):
            unclear.append((path, value, said))
    assert not accepted
    assert not unclear
    assert count >= {"train": 400, "evaluate": 150}[door]


@pytest.mark.parametrize(
    ("door", "overrides", "said"),
    [
        ("train", ["data.shape=[1,9,9]"], "small_cnn needs sides divisible by 4, got 9x9"),
        ("train", ["data.mean=[0,0,0]", "data.std=[1,1,1]"], "for 3 channels, but data.shape="),
        ("train", ["attack=lagrangian", "attack.p=inf"], "attack.p=inf has no price per distance"),
        ("train", ["attack=wrm", "attack.p=inf"], "attack.p=inf has no price per distance"),
        ("train", ["model.activation=gelu"], "model.activation=gelu is unknown; choose relu or elu"),
        ("train", ["optimizer=sgd", "optimizer.momentum=0"], "Nesterov momentum requires a momentum"),
        ("train", ["~scheduler"], "scheduler is missing"),
        ("train", ["model=wrn_28_10", "model.depth=11"], "model.depth=11 is no depth of a wide ResNet"),
        ("train", ["model=torchvision", "model.name=resnet50", "+model.option=3"], "did you mean options?"),
        ("train", ["+model.widht=3"], "model.widht is not a setting of small_cnn; did you mean width?"),
        (
            "train",
            ["+callbacks.warmup._target_=wdro_train.callbacks.RadiusWarmup"],
            "its name is now wdro_train.training.callbacks.RadiusWarmup",
        ),
        ("train", ["data=mnist", "data.name=MNISTT"], "data.name=MNISTT is not a data set of torchvision"),
        ("train", ["data=image_folder", "data.root=nowhere"], "data.root=nowhere has no folder"),
        ("train", ["data=huggingface"], "these images have no default for data.name; give data.name=..."),
        ("train", ["scheduler=one_cycle", "scheduler.pct_start=2"], "scheduler.pct_start=2 is out of range"),
        ("evaluate", ["certificate.method=smoothing", "attack.norm=inf"], "smoothing certifies the l_2 norm"),
        (
            "evaluate",
            ["certificate.method=lipschitz", "attack.norm=2", "certificate.radii=[0.1]"],
            "certificate.radii is for relaxations",
        ),
        ("evaluate", ["model=small_cnn", "data=digits", "data.batch_size=0"], "data.batch_size=0 is out of range"),
        (
            "evaluate",
            ["ckpt_path=[a.ckpt,b.ckpt,c.ckpt]", "labels=[ours,baseline]"],
            "labels=[ours,baseline] names 2 networks, but 3 are judged; give one name for each network, in their order",
        ),
        ("evaluate", ["labels=[ours,baseline]"], "names 2 networks, but 1 is judged"),
        ("evaluate", ["ckpt_path=[a.ckpt,b.ckpt]", "labels=ours"], "labels=[ours] names 1 network, but 2 are judged"),
        (
            "evaluate",
            ["ckpt_path=[a.ckpt,b.ckpt]", "labels=[ours,ours]"],
            "labels=[ours,ours] has 'ours' more than once; give each network a name of its own",
        ),
    ],
)
def test_combinations(door, overrides, said):
    with pytest.raises(UserError) as caught:
        schemas.check(composed(door, *overrides), door)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("door", "overrides"),
    [
        ("train", ["attack.p=inf", "attack.delta=8/255", "seed=3", "ckpt_path=a.ckpt", "attack.scope=running"]),
        ("train", ["trainer=ddp_sim", "finetune.freeze=0.*", "trainer.limit_val_batches=0.5", "+again=2"]),
        ("train", ["method=mma", "+callbacks.warmup._target_=wdro_train.training.callbacks.RadiusWarmup"]),
        ("train", ["trainer.max_epochs=-1", "scheduler=constant", "trainer.precision=bf16-mixed", "logger=none"]),
        ("train", ["objective._target_=shell.dropout_cnn", "model._target_=shell.breaking_cnn", "attack.delta=0"]),
        ("evaluate", ["ckpt_path=[a.ckpt,b.ckpt]", "labels=['PGD, 8/255',ours]"]),
        ("evaluate", ["ckpt_path=[a.ckpt,b.ckpt]", "attack.p=1", "curve.p=[1,inf]", "curve.deltas=[0,8/255]"]),
        ("evaluate", ["protocol=paper_table1", "model.name=Carmon2019Unlabeled", "devices=2", "accelerator=cpu"]),
        ("evaluate", ["poster=null", "certificate.method=crown", "limit=50", "logger=wandb", "pictures=0"]),
    ],
)
def test_good_values_pass(door, overrides):
    schemas.check(composed(door, *overrides), door)


# Arguments that only Python can give, or whose values Lightning checks.
UNCHECKED = {"progress", "console", "save_on_exception", "train_time_interval", "verbose", "prefix"}
UNCHECKED |= {"flush_logs_every_n_steps"}


def test_what_configuration_files_make_has_checked_settings():
    """An argument that is new is checked like the others, or wrong values of it end in a traceback."""
    pattern = re.compile(r"_target_: (wdro_train\.(?:attacks|data|models|objectives|training)\.[\w.]+)")
    found = {name for file in (ROOT / "conf").rglob("*.yaml") for name in pattern.findall(file.read_text())}
    assert len(found) > 30
    for name in sorted(found):
        made = located(name)
        settings, arguments = part_of(made), {argument.name for argument in taken(made) or ()}
        known = settings.model_fields.keys() if settings is not None else set()
        assert arguments <= known | UNCHECKED, f"{name}: {arguments - known}"


BEFORE = [
    ["train.py", "attack.steps=1.5"],
    ["train.py", "run_dir="],
    ["train.py", "hydra.run.dir="],
    ["train.py", "hydra.run.dir=/dev/null/run"],
    ["train.py", "run_dir=/dev/null/run"],
    ["train.py", "trainer.devices=0"],
    ["train.py", "data=mnist", "data.root=nowhere"],  # known only when the images are read
    ["train.py", "ckpt_path=epoch=1-step=10.ckpt"],
    ["train.py", "-m", "seed=0,1", "hydra.sweep.dir="],
    ["train.py", "+foo"],
    ["train.py", "scheduler=null"],
    ["evaluate.py", "limit=abc"],
    ["evaluate.py", "ckpt_path=epoch=1-step=10.ckpt,b.ckpt"],
    ["evaluate.py", "store=/dev/null/store", "model=small_cnn", "data=digits"],
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", BEFORE, ids=[" ".join(one) for one in BEFORE])
def test_nothing_is_left(arguments, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    if "epoch" in arguments[-1]:
        assert "there is no checkpoint at epoch=1-step=10.ckpt" in done.stderr


def until(condition, process, timeout=PATIENCE):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid):
    """Processes that a process has started."""
    stats = (Path(f"/proc/{name}/stat") for name in os.listdir("/proc") if name.isdigit())
    found = []
    for stat in stats:
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += [int(stat.parent.name)] if int(fields[1]) == pid and fields[0] != "Z" else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGTERM, ["logger=default"]), (signal.SIGINT, ["trainer=ddp_sim"])]
)
def test_a_signal_ends_training(number, options, tmp_path):
    """Also its ranks. What it says is a command that goes on, with Lightning's own names for files too."""
    with start("train.py", *ENDLESS, *options, "hydra.run.dir=run", cwd=tmp_path) as process:
        until((tmp_path / "run/checkpoints/last.ckpt").is_file, process)
        ranks = children(process.pid)
        process.send_signal(number)
        assert process.wait() == 128 + number
        printed = process.stderr
    said = printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert said.startswith("interrupted; resume with python ")
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    last = tmp_path / "run/checkpoints/last.ckpt"
    epoch = read_checkpoint(last)["epoch"]
    assert (tmp_path / "run/csv/metrics.csv").read_text().count("\n") > epoch
    if "logger=default" in options:
        assert len(list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))) == 1
        named = last.rename(last.with_name("epoch=1-step=10.ckpt"))
        again = said.removeprefix("interrupted; resume with python ").replace(str(last), str(named))
        _, *typed = shlex.split(again)
        less = [item for item in typed if "max_epochs" not in item and not item.startswith("hydra.run.dir")]
        more = [f"trainer.max_epochs={epoch + 2}", "hydra.run.dir=more", "logger=csv"]
        done = run("train.py", *less, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert read_checkpoint(tmp_path / "more/checkpoints/last.ckpt")["epoch"] == epoch + 1


@pytest.mark.slow
def test_a_signal_ends_a_sweep(tmp_path):
    """The jobs that were done are in its table; no further one is begun."""
    sweep = ["-m", "trainer.max_epochs=1,100000,2", *QUICK, "hydra.sweep.dir=out"]
    with start("train.py", *sweep, cwd=tmp_path) as process:
        until((tmp_path / "out/1/checkpoints/last.ckpt").is_file, process)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        printed = process.stderr
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].endswith(" hydra.sweep.dir=out resume=true")
    with (tmp_path / "out/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["val/adv_acc"]) for row in rows] == [True, False]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = run("train.py", *QUICK, "trainer.max_epochs=1", "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    last = folder / "run/checkpoints/last.ckpt"
    return last.rename(last.with_name("epoch=0-step=2.ckpt"))


@pytest.mark.slow
def test_a_signal_ends_an_evaluation(checkpoint, tmp_path):
    slow = [f"ckpt_path={checkpoint}", "distances.steps=100000", "batch_size=8", "accelerator=cpu"]
    with start("evaluate.py", *slow, cwd=tmp_path) as process:
        until(lambda: list(tmp_path.rglob("hydra.yaml")), process)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        printed = process.stderr
    assert printed.count("\n") == 1
    assert printed.startswith("interrupted; the same command goes on from what is finished: python ")


@pytest.mark.slow
def test_first_order_values_are_left_out_at_p_1(checkpoint, tmp_path):
    """With the default poster; the file has a name of Lightning's own."""
    few = ["limit=20", "distances.steps=3", "pictures=0", "accelerator=cpu", "hydra.run.dir=out"]
    done = run("evaluate.py", f"ckpt_path={checkpoint}", "attack.p=1", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no first-order values" in done.stdout
    assert (tmp_path / "out/report.json").is_file()


class Broken(Dataset):
    """Raises what it is given, in a worker."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [(UserError("a.png is broken; remove it"), "a.png is broken; remove it"), (OSError("truncated"), "truncated")],
)
def test_errors_in_workers(error, said):
    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader(Broken(error), num_workers=1)))
    assert sentence(caught.value) == said


def test_errors_of_the_machine(tmp_path):
    """Each has a sentence; a mistake in a program has none, but a place for its traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as refused:
        (tmp_path / "file" / "run").mkdir()
    assert sentence(refused.value).startswith(f"{tmp_path / 'file' / 'run'}: Not a directory; ")
    assert "lower data.batch_size" in sentence(MemoryError())
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    assert sentence(cuda).startswith("CUDA ran out of memory (tried to allocate 2.00 gib); lower data.batch_size")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert sentence(caught.value).startswith("the machine ran out of memory")
    assert sentence(KeyError("momentum")) is None
    try:
        {}["momentum"]
    except KeyError as error:
        said = unexpected(error, tmp_path)
    assert said.startswith("KeyError: 'momentum'; ")
    assert "Traceback" in (tmp_path / "traceback.txt").read_text()


@pytest.mark.parametrize(("path", "said"), [("", "is empty"), ("file/run", "is a file"), ("file", "is a file")])
def test_folders_that_cannot_be_written(path, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=said):
        writable.refuse_unwritable("run_dir", path)
    writable.refuse_unwritable("run_dir", "new/run")
    assert not (tmp_path / "new").exists()
