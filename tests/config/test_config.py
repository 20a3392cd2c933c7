import copy
import math
import re
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch
from datafiles import write_folder, write_onnx, write_vit
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.utils.data import DataLoader

from wdro_train.attacks import WPGD, WRM, AttackResult, BoundaryAttack, Lagrangian, Pool
from wdro_train.config.build import build_data, build_model, plain
from wdro_train.config.resolvers import default_delta, register_resolvers
from wdro_train.data import ImageDataModule
from wdro_train.theory.sensitivity import BatchScope
from wdro_train.training.build import build_module, build_trainer, check_adversary
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.training.csv_logger import RunCSVLogger
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.errors import UserError, user_error_in

CONF = Path(__file__).parents[2] / "conf"
# Hydra's own settings, what evaluate.py alone takes, what options have in common, and what this machine adds.
UNBUILT = {"hydra", "protocol", "first_order", "base", "local"}
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in UNBUILT)
# What has no default, and sizes that a test can bear.
NEEDS = {
    ("model", "torchvision"): ["model.name=resnet18", "model.small_stem=true"],
    ("model", "wrn_28_10"): ["model.width=1", "model.depth=10"],
    ("model", "wrn_34_10"): ["model.width=1", "model.depth=16"],
    ("model", "preact_resnet18"): ["model.width=4"],
    ("model", "timm"): ["model.name=test_resnet"],
    ("model", "huggingface"): ["model.name={config}", "model.pretrained=false"],
    ("data", "image_folder"): ["data.root={folder}", "data.shape=[3,16,16]"],
    ("data", "imagenet"): ["data.shape=[3,32,32]", "model=torchvision", "model.name=mobilenet_v3_small"],
    ("data", "huggingface"): ["data.name=somewhere", "data.num_classes=10", "data.shape=[3,16,16]", "model.width=4"],
    ("data", "numpy"): ["data.images=x.npy", "data.labels=y.npy"],
    ("augment", "autoaugment"): ["data=cifar10"],
    ("method", "lipschitz_dual"): ["model=lipschitz_mlp", "attack.norm=2"],
    ("objective", "lipschitz_dual"): ["model=lipschitz_mlp", "attack.norm=2"],
    ("scheduler", "one_cycle"): ["scheduler.total_steps=2"],
    ("experiment", "cifar10_small"): ["scheduler.total_steps=2"],
    ("experiment", "gpu_cifar10_resnet18"): ["scheduler.total_steps=2"],
    ("model", "robustbench"): ["model.name=Wong2020Fast", "model.pretrained=false", "data=cifar10"],
    ("model", "own"): ["model._target_=shell.network"],
    ("model", "onnx"): ["model.path={onnx}"],
}
EXTRA_PACKAGE = {"timm": "timm", "huggingface": "transformers", "robustbench": "robustbench"}
EXTRA_PACKAGE["onnx"] = "onnx2torch"


@pytest.fixture
def configure(tmp_path):
    """Composes `conf/train.yaml` as the command line does."""
    register_resolvers()

    def compose_train(*overrides: str) -> DictConfig:
        cfg = compose("train", list(overrides), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield compose_train
    HydraConfig.instance().cfg = before
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def whole():
    """`conf/train.yaml` as it is, for tests that change one value."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train")


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "sabr"])
def test_certified_training_takes_every_order(method, configure):
    """No attack is run, so that none may refuse p = 1, of which the knapsack over certified radii knows the value."""
    cfg = configure(f"method={method}", "attack.p=1", "attack.delta=0.05")
    assert instantiate(cfg.attack).ball.p == 1
    assert instantiate(cfg.objective).ball.p == 1


def test_every_group_is_covered():
    groups = {group for group, _ in OPTIONS}
    assert groups == {path.name for path in CONF.iterdir() if path.is_dir()} - UNBUILT
    assert len(OPTIONS) >= 25


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_builds_a_run(group, option, configure, tmp_path):
    """All objects of a run; what needs absent hardware or several processes is refused by Lightning itself."""
    logger = [] if group == "logger" else ["logger=none"]
    extra = ["objective=standard"] if (group, option) == ("callbacks", "no_adversary") else []
    if group == "model" and find_spec(EXTRA_PACKAGE.get(option, "torch")) is None:
        pytest.skip(f"{EXTRA_PACKAGE[option]} is not installed")
    made = {"config": write_vit(tmp_path / "vit"), "folder": write_folder(tmp_path / "images")}
    made["onnx"] = write_onnx(tmp_path / "net.onnx") if option == "onnx" else None
    extra += [need.format(**made) for need in NEEDS.get((group, option), [])]
    extra += ["scheduler.total_steps=2"] if group == "study" else []  # there is no run to count them in
    cfg = configure(f"{group}={option}", *logger, *extra)
    assert plain(cfg)
    module = build_module(cfg)
    assert isinstance(module, RobustClassifier)
    data = build_data(cfg)
    assert isinstance(data, ImageDataModule)
    x = torch.rand(2, *data.shape)
    assert module(x).shape == (2, data.num_classes)
    optimizers = module.configure_optimizers()
    optimizers["optimizer"].step()
    timed = optimizers["lr_scheduler"]
    (timed["scheduler"] if isinstance(timed, dict) else timed).step()
    attack = instantiate(cfg.attack)
    assert attack.ball.delta > 0
    found = attack(module, x, torch.tensor([0, 1]))
    assert isinstance(found, AttackResult)
    # The one trains past the ball, the others pay a price.
    if not isinstance(attack, BoundaryAttack | Lagrangian | WRM):
        assert attack.ball.spent(found.distances) <= attack.ball.delta * (1 + 1e-6)
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        with pytest.raises(Exception, match="No supported gpu backend found") as caught:
            build_trainer(cfg)
        assert isinstance(caught.value.__cause__, MisconfigurationException)
        return
    if group == "logger":
        if option == "mlflow":
            pytest.importorskip("mlflow")
        if option == "tensorboard":
            pytest.importorskip("tensorboard")
        kinds = {"tensorboard": [TensorBoardLogger], "mlflow": [MLFlowLogger]}
        kinds |= {"csv": [RunCSVLogger], "wandb": [WandbLogger], "default": [RunCSVLogger, WandbLogger], "none": []}
        loggers = [instantiate(node) for node in cfg.logger.values()]
        assert [type(one) for one in loggers] == kinds[option]
        return
    trainer = build_trainer(cfg)
    assert isinstance(trainer, L.Trainer)
    assert trainer.max_epochs == cfg.trainer.max_epochs
    assert trainer.num_devices == (2 if option == "ddp_sim" else 1)
    check_adversary(trainer.callbacks, module)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_top_files_are_short(name):
    assert len((CONF / f"{name}.yaml").read_text().splitlines()) < 70


def test_every_yaml_is_reachable():
    """No file lies in a folder or depth that no test above looks at, and what options share is shared by some."""
    listed = {CONF / group / f"{option}.yaml" for group, option in OPTIONS} | set((CONF / "hydra").glob("*.yaml"))
    for beside in ("protocol", "first_order", "base"):
        listed |= set((CONF / beside).glob("*.yaml"))
    found = set(CONF.rglob("*.yaml")) - set(CONF.glob("local/*.yaml"))
    assert found == listed | {CONF / "train.yaml", CONF / "evaluate.yaml"}
    texts = {path: path.read_text() for path in found}
    for shared in (CONF / "base").glob("*.yaml"):
        inside = re.compile(rf"^  - {shared.stem}$", re.MULTILINE)
        used = [
            path
            for path, text in texts.items()
            if f"  - /base/{shared.stem}@" in text or (path.parent == shared.parent and inside.search(text))
        ]
        assert used, shared.name


@pytest.mark.parametrize("attack", ["w_fgsm", "w_pgd"])
def test_numbers_as_typed(attack, configure):
    cfg = configure(f"attack={attack}", "attack.delta=8/255", "attack.p=inf", "attack.norm=2")
    ball = instantiate(cfg.attack).ball
    assert (ball.p, ball.norm, ball.delta) == (math.inf, 2.0, 8 / 255)
    adversary = instantiate(cfg.callbacks.adversary)
    everything = [adversary.attack, adversary.judge.first_order, *adversary.judge.val_attack.attacks]
    assert {one.ball for one in everything} == {ball}


def settings_of(attack):
    """Every attribute of an attack, down to the attacks it is made of."""
    if isinstance(attack, Pool):
        return [settings_of(one) for one in attack.attacks]
    plain_types = {key: value.name if isinstance(value, BatchScope) else value for key, value in vars(attack).items()}
    return type(attack), plain_types


@pytest.mark.parametrize("threat", [{"p": "2", "norm": "inf", "delta": "0.1"}, {"p": "inf", "norm": "2", "delta": "1"}])
def test_judging_is_the_same_from_python(threat, configure):
    """`val/adv_acc` and the bounds mean the same whether the callback is made by hand or by the command line."""
    typed = configure(*(f"attack.{key}={value}" for key, value in threat.items()))
    ours = instantiate(typed.callbacks.adversary)
    theirs = DistributionalAdversary(WPGD(**threat))
    for part in ("val_attack", "first_order"):
        assert settings_of(getattr(ours.judge, part)) == settings_of(getattr(theirs.judge, part))
    assert (ours.whole_set, ours.judge.distances, ours.judge.seed) == (
        theirs.whole_set,
        theirs.judge.distances,
        theirs.judge.seed,
    )


@pytest.mark.parametrize("attack", ["w_fgsm", "w_pgd"])
def test_attack_keys_are_flat(attack, configure):
    cfg = configure(f"attack={attack}").attack
    assert not any(OmegaConf.is_config(cfg[key]) for key in cfg)
    assert {"p", "norm", "delta", "loss"} <= set(cfg)


@pytest.mark.parametrize(
    ("data", "norm", "delta"),
    [("digits", "inf", 0.1), ("digits", "2", 0.5), ("digits", "2.0", 0.5), ("cifar10", "inf", 8 / 255),
     ("mnist", "2", 1.5)],
)  # fmt: skip
def test_delta_follows_data_and_norm(data, norm, delta, configure):
    cfg = configure(f"data={data}", f"attack.norm={norm}")
    assert instantiate(cfg.attack).ball.delta == delta
    assert instantiate(configure(f"data={data}", f"attack.norm={norm}", "attack.delta=0.3").attack).ball.delta == 0.3


@pytest.mark.parametrize(
    ("norm", "message"),
    [(3, "no default radius for attack.norm=3; set attack.delta"), (0.5, "attack.norm=0.5 is not a norm"),
     ("nan", "attack.norm=nan is not a norm"), ("two", "attack.norm='two' is not a number")],
)  # fmt: skip
def test_default_delta_refuses(norm, message):
    with pytest.raises(UserError, match=message):
        default_delta({"linf": "8/255", "l2": 0.5}, norm)


def test_default_delta_stays_as_it_is_written():
    assert default_delta({"linf": "8/255"}, "inf") == "8/255"
    with pytest.raises(UserError, match=r"data\.delta\.linf"):
        default_delta({"linf": "eight"}, "inf")


@pytest.mark.parametrize("key", ["attack.stepz", "trainer.epochs", "data.batchsize", "lr"])
def test_unknown_key_is_named(key, configure):
    with pytest.raises(ConfigCompositionException, match=f"Could not override '{key}'"):
        configure(f"{key}=3")


@pytest.mark.parametrize(
    ("overrides", "network"),
    [
        ((), "small_cnn"),
        (("model=wrn_28_10",), "wrn_28_10"),
        (("model=torchvision", "model.name=resnet50"), "resnet50"),
        (("model=small_cnn", "model._target_=my_package.Net"), "Net"),
    ],
)
def test_a_run_is_named_after_its_network(overrides, network, configure):
    assert configure(*overrides).name == f"digits_{network}_adversarial_W2"


def test_unknown_option_lists_the_known_ones(configure):
    known = r"Could not find 'model/nosuch'(.|\n)*\tresnet18\n(.|\n)*\tsmall_cnn\n"
    with pytest.raises(ConfigCompositionException, match=known):
        configure("model=nosuch")


@pytest.mark.parametrize(
    ("override", "part", "message"),
    [
        ("attack.p=0.5", "attack", "attack.p=0.5 is not a Wasserstein order; choose p in"),
        ("attack.p=1", "attack", "W-PGD cannot run with attack.p=1: .*; choose attack.p > 1"),
        ("attack.delta=-1", "attack", "attack.delta=-1 is not a radius; choose a finite delta >= 0"),
        ("attack.delta=nan", "attack", "attack.delta=nan is not a radius"),
        ("attack.delta=inf", "attack", "attack.delta=inf is not a radius"),
        ("attack.delta=8/0", "attack", "attack.delta='8/0' is not a number; write it like 2, 0.5, inf or 8/255"),
        ("attack.norm=0.5", "attack", "attack.norm=0.5 is not a norm; choose norm in"),
        ("attack.norm=3", "attack", "no default radius for attack.norm=3; set attack.delta"),
        ("attack.steps=0", "attack", "attack.steps=0 makes no step"),
        ("attack.step_size=-1", "attack", "attack.step_size=-1 does not ascend"),
        ("attack.loss=mse", "attack", "mse.*redlr"),
        ("data.val_fraction=2", "data", "data.val_fraction=2 leaves a set empty"),
        ("data.std=[0]", "model", "one positive std per channel"),
        ("data.shape=[1,9,9]", "model", "small_cnn needs sides divisible by 4, got 9x9; use model=resnet18"),
    ],
)
def test_bad_value_is_one_sentence(override, part, message, whole):
    cfg = copy.deepcopy(whole)
    (typed,) = OverridesParser.create().parse_overrides([override])
    OmegaConf.update(cfg, typed.key_or_group, typed.value())
    try:
        (build_model if part == "model" else instantiate)(cfg[part])
    except Exception as error:
        found = str(user_error_in(error))
    assert re.search(message, found)
    assert "\n" not in found


def test_first_order_refusal_names_the_attack(configure):
    with pytest.raises(Exception, match="W-FGSM cannot run with") as caught:
        instantiate(configure("attack=w_fgsm", "attack.p=1").attack)
    assert user_error_in(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["callbacks.adversary=null"], "objective Adversarial needs an adversary .*objective=standard"),
        (["callbacks=no_adversary", "objective=w_trades"], "objective WTrades needs an adversary"),
        (["callbacks.adversary=null", "objective=standard"], "val/adv_acc .*; use callbacks=no_adversary"),
    ],
)
def test_what_needs_an_adversary_says_so(overrides, message, configure):
    cfg = configure("logger=none", *overrides)
    with pytest.raises(UserError, match=message):
        check_adversary(build_trainer(cfg).callbacks, build_module(cfg))


def test_objects_are_those_of_the_configuration(configure):
    cfg = configure("attack.steps=3", "seed=4", "logger=none", "optimizer=sgd", "optimizer.lr=0.3", "model.width=5")
    trainer, module, data = build_trainer(cfg), build_module(cfg), build_data(cfg)
    adversary = next(c for c in trainer.callbacks if isinstance(c, DistributionalAdversary))
    assert isinstance(adversary.attack, WPGD)
    assert (adversary.attack.steps, adversary.attacker.seed, adversary.judge.seed, data.seed) == (3, 4, 4, 4)
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.3
    assert module.model[1].out_channels == 5
    assert isinstance(data.train_dataloader(), DataLoader)
    assert module.config == plain(cfg)
