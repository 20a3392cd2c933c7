"""The field's training methods against independent formulas."""

import copy
import json
import math
from collections import OrderedDict
from functools import partial

import lightning as L
import pytest
import torch
from oracles import Linear, norm, own_logit, power_mean, random_batch, small_network
from shell import Arrays, adversary, classifier, digits, fitted, loader, network, run, trainer
from torch import nn

from wdro_train.attacks import KLPGD, WFGSM, WPGD, BoundaryAttack, Lagrangian, Pool
from wdro_train.evaluation.networks import load_network
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Mart
from wdro_train.training.callbacks import AdversarialWeightPerturbation, DistributionalAdversary, RadiusWarmup
from wdro_train.training.finetuning import start_from
from wdro_train.utils.errors import UserError

INF = math.inf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mart():
    model, (x, y) = small_network(), random_batch(12, 0)
    x_adv = WFGSM(p=2, norm=2, delta=0.5)(model, x, y).x_adv
    clean, adv = model(x).softmax(1), model(x_adv).softmax(1)
    rows = torch.arange(12)
    others = adv.clone()
    others[rows, y] = 0
    bce = -adv[rows, y].log() - (1 - others.amax(1)).log()
    kl = (clean * (clean / adv).log()).sum(1) * (1 - clean[rows, y])
    result = Mart(beta=3.0)(model, x, x_adv, y)
    torch.testing.assert_close(result.loss, (bce + 3 * kl).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.terms["kl"], kl.mean(), rtol=1e-4, atol=1e-6)
    certain = Mart()(lambda images: 100 * model(images), x, x_adv, (y + 1) % 3)
    assert certain.loss.isfinite()
    with pytest.raises(UserError, match=r"objective\.beta=-1"):
        Mart(beta=-1)


def test_kl_attack_ignores_labels_and_raises_the_kl():
    model, (x, y) = fitted(), digits(40, start=300)
    attack = KLPGD(p=INF, norm=INF, delta=0.1, steps=5)
    first, other = (attack(model, x, labels, generator=seeded()) for labels in (y, (y + 1) % 10))
    assert torch.equal(first.x_adv, other.x_adv)
    clean = model(x).softmax(1)

    def kl(images):
        return (clean * (clean.log() - model(images).log_softmax(1))).sum(1).mean()

    noise = WPGD(p=INF, norm=INF, delta=0.1, steps=1, step_size=1e-9, random_start=True)
    assert kl(first.x_adv) > 3 * kl(noise(model, x, y, generator=seeded()).x_adv) > 0
    assert first.distances.max() <= 0.1 + 1e-6


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("s", [2.0, INF])
def test_lagrangian_of_a_linear_loss_is_w_fgsm(p, s):
    """At the multiplier p lambda delta^(p-1) = Upsilon the penalised maximiser is Q_delta's."""
    x = 0.45 + 0.1 * torch.rand(20, 1, 5, 5, generator=seeded())
    g = torch.randn(x.shape, generator=seeded(1)) * torch.linspace(0.7, 1.3, 20)[:, None, None, None]
    threat = {"p": p, "norm": s, "delta": 0.1, "loss": own_logit}
    ours = Lagrangian(**threat, random_start=False, rate=0)(Linear(g), x, torch.arange(20))
    q = WFGSM(**threat)(Linear(g), x, torch.arange(20))
    torch.testing.assert_close(ours.x_adv, q.x_adv, rtol=0, atol=1e-5)
    assert ours.terms["excess"].item() == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(ours.upsilon, q.upsilon)


@pytest.mark.parametrize("free", [0.0, 0.5])
def test_price_follows_the_budget(free):
    model, (x, y) = fitted(), digits(64, start=300)
    attack = Lagrangian(p=2, norm=INF, delta=0.05, steps=4, free=free, rate=0.5)
    excess = [attack(model, x, y, generator=seeded(i)).terms["excess"].item() for i in range(40)]
    budget = (1 - free) * 0.05
    assert abs(sum(excess[-10:]) / 10 - budget) < min(abs(excess[0] - budget), 0.1 * budget)
    found = attack(model, x, y, generator=seeded())
    beyond = (norm(found.x_adv.double() - x.double(), INF) - free * 0.05).clip(0)
    assert power_mean(beyond, 2) == pytest.approx(found.terms["excess"].item(), rel=1e-6)
    again = Lagrangian(p=2, norm=INF, delta=0.05, steps=4, free=free, rate=0.5)
    again.load_state_dict(attack.state_dict())
    assert torch.equal(again(model, x, y, generator=seeded()).x_adv, attack(model, x, y, generator=seeded()).x_adv)


def test_lagrangian_refuses_what_has_no_price():
    for options, message in (
        ({"p": INF}, "attack.p=inf"),
        ({"p": 1}, "attack.p=1"),
        ({"delta": 0}, "delta=0"),
        ({"free": 1}, "free=1"),
        ({"steps": 0}, "steps=0"),
    ):
        with pytest.raises(UserError, match=message):
            Lagrangian(**{"p": 2, "norm": INF, "delta": 0.1, **options})
    with pytest.raises(UserError, match=r"attack\.limit=0\.1 keeps every image within 0\.8, .* attack\.delta=1,"):
        Lagrangian(p=2, norm=2, delta=1, limit=0.1)(fitted(), *digits(4))


class Arrays1(Arrays):
    """A single training step of 35 images."""

    def __init__(self):
        super().__init__(n=50, batch_size=35, num_workers=0)


def step(callbacks, model, scale=None):
    module = classifier(copy.deepcopy(model), objective=Adversarial(), optimizer=partial(torch.optim.SGD, lr=0.1))
    before = [p.detach().clone() for p in module.parameters()]
    trainer([adversary(), *callbacks], max_epochs=1, limit_val_batches=0).fit(module, datamodule=Arrays1())
    return [(b - a.detach()) / 0.1 for b, a in zip(before, module.parameters(), strict=True)]


class Spy(AdversarialWeightPerturbation):
    """Keeps the loss as a function, to differentiate it elsewhere."""

    def perturb(self, module, loss):
        clean = [p.detach().clone() for p in module.parameters()]
        up = torch.autograd.grad(loss(), list(module.parameters()))
        moved = [p + self.gamma * p.norm() * g / g.norm() if p.dim() > 1 else p for p, g in zip(clean, up, strict=True)]
        with torch.no_grad():
            for p, m in zip(module.parameters(), moved, strict=True):
                p.copy_(m)
        self.expected = [g.clone() for g in torch.autograd.grad(loss(), list(module.parameters()))]
        with torch.no_grad():
            for p, c in zip(module.parameters(), clean, strict=True):
                p.copy_(c)
        super().perturb(module, loss)


def test_weight_perturbation_takes_the_gradient_elsewhere():
    spy = Spy(gamma=0.05)
    taken = step([spy], network())
    for a, b in zip(taken, spy.expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    plain = step([], network())
    assert max((a - b).abs().max() for a, b in zip(taken, plain, strict=True)) > 1e-3
    for late in (AdversarialWeightPerturbation(gamma=0), AdversarialWeightPerturbation(start_epoch=1)):
        for a, b in zip(step([late], network()), plain, strict=True):
            torch.testing.assert_close(a, b)


def test_weight_perturbation_counts_a_batch_once():
    model = network(batch_norm=True)
    module = classifier(copy.deepcopy(model), objective=Adversarial())
    callbacks = [adversary(), AdversarialWeightPerturbation()]
    trainer(callbacks, max_epochs=1, limit_val_batches=0).fit(module, datamodule=Arrays1())
    assert module.model[2].num_batches_tracked == 1


def test_warmup_leaves_the_judge_alone():
    seen = []

    class Watch(RadiusWarmup):
        def on_train_batch_start(self, trainer, pl_module, *_):
            (judge,) = (c for c in trainer.callbacks if c is callbacks[0])
            seen.append((judge.attack.ball.delta, judge.ball.delta, judge.judge.val_attack.ball.delta))

    callbacks = [adversary(), Watch(4)]
    module = classifier(objective=Adversarial())
    trainer(callbacks, max_epochs=5, limit_train_batches=1).fit(module, datamodule=Arrays(num_workers=0))
    assert [round(radius, 6) for radius, _, _ in seen] == [0.025, 0.05, 0.075, 0.1, 0.1]
    assert {judged[1:] for judged in seen} == {(0.1, 0.1)}
    with pytest.raises(UserError, match="epochs=0"):
        RadiusWarmup(0)


@pytest.mark.parametrize(
    "kind",
    [
        WPGD,
        KLPGD,
        lambda **threat: Pool([WPGD(**threat | {"steps": 50, "random_start": False}, keep="cheapest")]),
        BoundaryAttack,
    ],
)
@pytest.mark.slow
@pytest.mark.covers
def test_warmup_moves_the_images_less(kind):
    attack = kind(p=INF, norm=INF, delta=0.1, steps=2)
    callbacks = [DistributionalAdversary(attack, val_attack=None, first_order=None), RadiusWarmup(4)]
    door = trainer(callbacks, max_epochs=2, limit_val_batches=0)
    door.fit(classifier(objective=Adversarial()), datamodule=Arrays(num_workers=0))
    assert 0.025 < door.callback_metrics["train/spent"] <= 0.05 + 1e-6  # the second epoch's radius


def test_warmup_of_the_penalty():
    penalties = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            x, y = digits(20)
            result = pl_module.objective(pl_module, x, x, y)
            penalties.append(((result.loss - result.terms["v0"]) / result.terms["upsilon"]).item())

    module = classifier(objective=FirstOrderPenalty(p=2, norm=INF, delta=0.1))
    trainer([RadiusWarmup(4), Watch()], max_epochs=5, limit_val_batches=0).fit(module, datamodule=Arrays1())
    assert penalties == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1], rel=1e-4)
    warmup = RadiusWarmup(4)
    for delta in (0.1, 0.3):  # one callback, one run after the other
        module = classifier(objective=FirstOrderPenalty(p=2, norm=INF, delta=delta))
        trainer([warmup], max_epochs=2, limit_val_batches=0).fit(module, datamodule=Arrays1())
        assert module.objective.ball.delta == pytest.approx(delta / 2)


def test_kl_attack_in_the_mode_it_is_asked_for():
    """Next to the image the prediction is the prediction there, whichever statistics make it."""
    model = network(batch_norm=True).train()
    x, y = digits(40)
    attack = KLPGD(p=INF, norm=INF, delta=1e-6, steps=1, batch_norm="train")
    assert attack(model, x, y, generator=seeded()).losses.abs().max() < 1e-4
    with pytest.raises(UserError, match=r"attack\.batch_size"):
        KLPGD(p=2, norm=INF, delta=0.1, batch_size=4)


def test_running_scope_of_the_kl_attack_is_saved():
    attack = KLPGD(p=2, norm=INF, delta=0.1, steps=1, scope="running")
    attack(fitted(), *digits(20), generator=seeded())
    assert DistributionalAdversary(attack).state_dict() == {"scope": attack.scope.state_dict()}
    assert attack.scope.state_dict()


RECIPES = ["trades", "mart", "lagrangian_at", "udr_at", "one_step_at", "mma", "awp", "ema", "worst_case", "w_pgd_at"]
RECIPES += ["wrm", "sr_wdro", "ibp", "crown_ibp", "sabr", "gaussian_noise"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every recipe for a few steps, in one sweep."""
    folder = tmp_path_factory.mktemp("recipes")
    options = ["logger=csv", "callbacks.images=null", "trainer.limit_train_batches=4", "trainer.max_epochs=1"]
    options += ["trainer=cpu", "model.width=4", "hydra.sweep.dir=out"]
    done = run("train.py", "-m", f"method={','.join(RECIPES)}", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RECIPES)), ids=RECIPES)
def test_recipes_train(trained, number):
    report = json.loads((trained / str(number) / "metrics.json").read_text())
    assert 0 <= report["val"][report["monitor"].removeprefix("val/")] <= report["test"]["clean_acc"] + 0.2
    network = load_network(str(trained / str(number) / "checkpoints/best.ckpt"))
    assert network.model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_averaged_weights_are_tested_as_they_are_kept(tmp_path):
    options = ["logger=none", "callbacks.images=null", "trainer.limit_train_batches=4", "trainer.max_epochs=2"]
    done = run("train.py", "method=ema", *options, "trainer=cpu", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    judged = run("evaluate.py", "ckpt_path=out/checkpoints/best.ckpt", "poster=null", "hydra.run.dir=e", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    page = json.loads((tmp_path / "e/report.json").read_text())
    assert page["models"][0]["clean_accuracy"] == pytest.approx(report["test"]["clean_acc"], abs=1e-6)


@pytest.fixture
def checkpoint(tmp_path):
    module = classifier(fitted(), objective=Adversarial())
    module.config = {"seed": 0}
    door = trainer([adversary()], enable_checkpointing=False, limit_train_batches=1)
    door.fit(module, datamodule=Arrays(num_workers=0))
    door.save_checkpoint(tmp_path / "base.ckpt")
    return tmp_path / "base.ckpt", module


def test_finetuning(checkpoint):
    path, base = checkpoint
    for init, same in (("keep", [True] * 4), ("reinit_head", [True, True, False, False]), ("perturb", [False] * 4)):
        module = classifier(network(seed=5))
        start_from(module, path, init=init, noise=0.02)
        pairs = list(zip(module.model.parameters(), base.model.parameters(), strict=True))
        assert [torch.equal(a, b) for a, b in pairs] == same
        if init == "perturb":
            for a, b in ((a.detach(), b.detach()) for a, b in pairs):
                assert (a - b).square().mean().sqrt() == pytest.approx(0.02 * b.square().mean().sqrt().item(), rel=0.6)


def test_frozen_layers_are_not_trained(checkpoint):
    path, base = checkpoint
    module = classifier(network(seed=5), objective=Adversarial())
    start_from(module, path, freeze=["1.*"])
    trainer([adversary()], max_epochs=1).fit(module, datamodule=Arrays(num_workers=0))
    same = [torch.equal(a, b) for a, b in zip(module.model.parameters(), base.model.parameters(), strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("freeze", ["1.*,2.*", "body"])
def test_frozen_statistics_do_not_move(freeze):
    """Without a checkpoint too, and in a part that holds others."""
    model = network(batch_norm=True)
    if freeze == "body":
        model = nn.Sequential(OrderedDict(body=model[:-1], head=model[-1]))
    module = classifier(model, objective=Adversarial())
    start_from(module, None, freeze=[f"{part}*" for part in freeze.split(",")])
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    trainer([adversary()], max_epochs=2).fit(module, datamodule=Arrays(num_workers=0))
    moved = {key for key, value in module.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(list(before)[-2:])


def test_weights_that_are_frozen_are_not_perturbed():
    module = classifier(objective=Adversarial())
    start_from(module, None, freeze="*.weight")
    with pytest.raises(UserError, match="every weight matrix is frozen"):
        trainer([adversary(), AdversarialWeightPerturbation()]).fit(module, datamodule=Arrays(num_workers=0))


def test_finetuning_says_what_is_wrong(checkpoint, tmp_path):
    path, _ = checkpoint
    for options, message in (
        ({"init": "new"}, "finetune.init=new"),
        ({"freeze": ["body.*"]}, r"finetune.freeze=body.\* matches no parameter"),
        ({"freeze": ["*"]}, "leaves nothing to train"),
        ({"freeze": "*"}, "leaves nothing to train"),
        ({"noise": "abc"}, r"finetune\.noise='abc'"),
        ({"noise": -1}, "finetune.noise=-1"),
    ):
        with pytest.raises(UserError, match=message):
            start_from(classifier(network()), path, **options)
    with pytest.raises(UserError, match=r"init=perturb has no network .* finetune\.ckpt_path"):
        start_from(classifier(network()), None, init="perturb")
    with pytest.raises(UserError, match="another network"):
        start_from(classifier(network(width=7)), path)
    with pytest.raises(UserError, match="no checkpoint"):
        start_from(classifier(network()), tmp_path / "none.ckpt")


def test_finetuned_network_is_judged(checkpoint):
    """A run over a loader of its own works with a network that has been started from another."""
    path, _ = checkpoint
    module = classifier(network(seed=5))
    start_from(module, path)
    logged = trainer([adversary()]).validate(module, loader(40, 20, start=300), verbose=False)[0]
    assert logged["val/clean_acc"] > 0.5
