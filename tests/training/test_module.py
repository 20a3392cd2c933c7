"""`RobustClassifier` and its adversary inside a Trainer: what they touch, what they refuse, what they log."""

import csv
import math
import warnings
from dataclasses import dataclass
from functools import partial

import lightning as L
import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from shell import Arrays, adversary, classifier, digits, fitted, loader, network, trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from wdro_train.attacks import WFGSM
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Standard, WTrades
from wdro_train.theory.losses import redlr
from wdro_train.training.adversary import AdversarialJudge, Attacker
from wdro_train.training.callbacks import (
    AdversarialImages,
    DistributionalAdversary,
    LearningRate,
    OverfittingWarning,
    SeedEpoch,
    ValidationHistory,
)
from wdro_train.utils.errors import UserError

OBJECTIVES = [
    Standard,
    Adversarial,
    WTrades,
    partial(FirstOrderPenalty, p=2, norm="inf", delta=0.05),
]
JUDGED = ("clean_acc", "adv_acc", "ratio", "ratio_upper", "ratio_lower")
KEYS = {
    f"val/{key}"
    for key in (
        *JUDGED,
        *("spent", "upsilon", "v0", "w0", "v_q", "v_first_order", "fgsm_acc", "fgsm_spent"),
        *("ratio_lower_attack", "ratio_lower_gradient"),
    )
}


def validated(module, callback, batches, **kwargs):
    return trainer([callback] if callback else [], **kwargs).validate(module, batches, verbose=False)[0]


def snapshot(module):
    return (
        {name: value.clone() for name, value in module.model.state_dict().items()},
        {name: m.training for name, m in module.model.named_modules()},
        {name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in module.named_parameters()},
    )


def assert_same(before, after):
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1] == before[1]
    assert after[2].keys() == before[2].keys()
    for name, (requires_grad, grad) in before[2].items():
        assert after[2][name][0] == requires_grad
        assert (grad is None) == (after[2][name][1] is None)
        assert grad is None or torch.equal(after[2][name][1], grad)


class Watch(DistributionalAdversary):
    """Compares the module before and after each attack."""

    def __init__(self, attack):
        super().__init__(attack)
        self.inference = []
        self.attacker = WatchedAttacker(attack, watch=self)
        self.judge = WatchedJudge(**vars(self.judge), watch=self)

    def watched(self, act, model, batch):
        before, inference = snapshot(model), torch.is_inference_mode_enabled()
        result = act(model, batch)
        assert_same(before, snapshot(model))
        assert torch.is_inference_mode_enabled() == inference
        self.inference.append(inference)
        return result


@dataclass(frozen=True, kw_only=True)
class WatchedAttacker(Attacker):
    watch: Watch

    def perturb(self, model, batch):
        return self.watch.watched(super().perturb, model, batch)


@dataclass(frozen=True, kw_only=True)
class WatchedJudge(AdversarialJudge):
    watch: Watch

    def judge(self, model, batch):
        return self.watch.watched(super().judge, model, batch)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_attacks_leave_the_module_alone(batch_norm):
    """BatchNorm statistics, flags per submodule, parameter gradients (here accumulated ones)."""
    module = classifier(network(batch_norm=True, dropout=0.3), objective=Adversarial())
    module.model[1].weight.requires_grad_(False)
    watch = Watch(adversary(batch_norm=batch_norm).attack)

    class Freeze(Callback):
        def on_train_start(self, trainer, module):
            module.model[2].eval()

    trainer([watch, Freeze()], accumulate_grad_batches=3, num_sanity_val_steps=2).fit(
        module, loader(64, 16), loader(32, 16)
    )
    assert watch.inference == [False] * (2 + 4 + 2)  # sanity check, training, validation
    trainer([watch]).validate(module, loader(32, 16), verbose=False)
    assert watch.inference[-2:] == [True, True]
    assert module.model[2].num_batches_tracked == 0  # frozen BatchNorm stayed frozen
    assert not module.model[1].weight.requires_grad


def test_batch_norm_sees_the_training_batches_only():
    module = classifier(network(batch_norm=True), objective=Adversarial())
    trainer([adversary(batch_norm="train")]).fit(module, loader(64, 16), loader(32, 16))
    assert module.model[2].num_batches_tracked == 4


def test_accumulated_gradients_are_those_of_the_large_batch():
    """One step over 4 batches of 16 equals one over a batch of 64, at p = inf where images do not interact."""
    weights = []
    for batch_size, accumulate in ((16, 4), (64, 1)):
        module = classifier(objective=Adversarial(), optimizer=partial(torch.optim.SGD, lr=0.1))
        trainer([adversary(p="inf", random_start=False)], accumulate_grad_batches=accumulate).fit(
            module, loader(64, batch_size)
        )
        weights.append([p.detach() for p in module.parameters()])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights[0][0], network()[1].weight)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_precisions(precision, objective):
    """Trains, and Upsilon and the perturbation do not care for the training precision."""
    module = classifier(fitted(), objective=objective(), optimizer=partial(torch.optim.SGD, lr=0.01))

    class Check(Attacker):
        def perturb(self, model, batch):
            result = super().perturb(model, batch)
            assert (result.x_adv.dtype, result.upsilon.dtype, result.distances.dtype) == (
                torch.float32,
                torch.float64,
                torch.float64,
            )
            assert float(self.attack.ball.spent(result.distances)) <= 0.1 * (1 + 1e-6)
            assert result.nonfinite_gradients == 0
            return result

    judge = adversary()
    judge.attacker = Check(judge.attack)
    door = trainer([judge], precision=precision)
    door.fit(module, loader(64, 16), loader(41, 16, start=300))
    logged = {key: float(value) for key, value in door.callback_metrics.items()}
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["val/fgsm_spent"] <= 0.1 * (1 + 1e-6)
    if precision != "bf16-true":
        assert next(module.parameters()).dtype == (torch.float64 if precision == "64-true" else torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("64-true", 1e-5), ("bf16-mixed", 0.1), ("16-mixed", 0.02), ("bf16-true", 0.1)]
)
def test_metrics_hardly_depend_on_precision(precision, tolerance):
    """Half precision rounds logits, never the sums over the set (300 images: a bfloat16 sum would stop at 256)."""
    batches = loader(300, 50, start=300)
    full = validated(classifier(fitted()), adversary(), batches)
    half = validated(classifier(fitted()), adversary(), batches, precision=precision)
    for key in ("v0", "v_q", "clean_acc", "fgsm_acc", "fgsm_spent"):
        assert half[f"val/{key}"] == pytest.approx(full[f"val/{key}"], rel=tolerance, abs=tolerance / 5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_sums_are_exact_in_every_precision(precision):
    """Constant logits, so that all that is left is the summation: clean_acc is a count, v0 and the loss are known."""
    x, y = digits(700)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.tensor([[4.0] + 9 * [0.0]]).to(x.dtype).expand(len(x), 10) + 0 * x.sum() * self.weight

    batches = DataLoader(TensorDataset(x, y), batch_size=64)
    right = (y == 0).double().mean().item()
    logged = validated(classifier(Constant()), adversary(), batches, precision=precision)
    assert logged["val/clean_acc"] == pytest.approx(right, abs=1e-7)
    assert logged["val/v0"] == pytest.approx(-right, abs=1e-6)
    alone = validated(classifier(Constant()), None, batches, precision=precision)
    expected = cross_entropy(torch.tensor([[4.0] + 9 * [0.0]]).expand(len(x), 10), y).item()
    assert alone["val/loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_sharding_strategies_are_refused(strategy):
    door = trainer()
    door.strategy.__class__ = type("Stand", (strategy,), {"__init__": lambda self: None})
    with pytest.raises(UserError, match=r"is not supported.*use trainer\.strategy=ddp"):
        adversary().setup(door, classifier(), "fit")


def test_foreign_module_is_refused():
    class Foreign(L.LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            return None

    with pytest.raises(
        UserError,
        match=r"Foreign cannot ask .* class Foreign\(AdversarialModule\) .* or wrap .* or leave this callback out",
    ):
        trainer([adversary()]).fit(Foreign(), loader(32, 16))


@pytest.mark.parametrize("act", ["fit", "validate", "test"])
@pytest.mark.parametrize("with_adversary", [True, False])
def test_several_evaluation_sets_are_refused(act, with_adversary):
    two = [loader(16, 16), loader(16, 16)]
    door = trainer([adversary()] if with_adversary else [])
    with pytest.raises(UserError, match="single dataloader"):
        getattr(door, act)(classifier(), *([loader(32, 16)] if act == "fit" else []), two)


@pytest.mark.parametrize("loaders", [lambda one: [one], lambda one: {"only": one}])
def test_one_evaluation_set_in_a_container(loaders):
    expected = validated(classifier(fitted()), adversary(), loader(41, 16))
    assert validated(classifier(fitted()), adversary(), loaders(loader(41, 16))) == expected


def test_without_callback_it_trains_normally():
    """The same weights as a training loop written out."""
    module = classifier(optimizer=partial(torch.optim.SGD, lr=0.1))
    door = trainer()
    door.fit(module, loader(64, 16), loader(41, 16, start=300))
    reference = network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for x, y in loader(64, 16):
        optimizer.zero_grad()
        cross_entropy(reference(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(module.model.state_dict(), reference.state_dict(), rtol=1e-6, atol=1e-7)
    x, y = digits(41, start=300)
    logged = {key: float(value) for key, value in door.callback_metrics.items() if key.startswith("val/")}
    expected = {
        "val/clean_acc": (reference(x).argmax(1) == y).float().mean().item(),
        "val/loss": cross_entropy(reference(x), y).item(),
    }
    assert logged == pytest.approx(expected, rel=1e-6)


def test_an_adversary_judges_the_runs_whose_callback_it_is():
    """What it has measured of one set says nothing about the next."""
    module, batches = classifier(fitted()), loader(41, 16)
    before = validated(module, None, batches)
    assert set(validated(module, adversary(), batches)) >= KEYS
    assert validated(module, None, batches) == before
    assert set(before) == {"val/clean_acc", "val/loss"}


def test_training_values_are_means_over_images():
    """The epoch's loss weighs the short last batch by its size."""
    module = classifier(optimizer=partial(torch.optim.SGD, lr=0.0))
    door = trainer()
    door.fit(module, loader(41, 16))
    x, y = digits(41)
    assert float(door.callback_metrics["train/loss"]) == pytest.approx(cross_entropy(network()(x), y).item(), rel=1e-6)
    right = (network()(x).argmax(1) == y).float().mean().item()
    assert float(door.callback_metrics["train/clean_acc"]) == pytest.approx(right, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}, {"num_workers": 1}])
def test_ordinary_dataloaders(workers):
    """Default collation, workers or not: the same numbers in every epoch, in training and outside it."""
    found = []
    history = ValidationHistory()
    module = classifier(fitted(), objective=Adversarial(), optimizer=partial(torch.optim.SGD, lr=0.0))
    door = trainer([adversary(), history], max_epochs=2)
    door.fit(module, loader(48, 16, **workers), loader(41, 16, start=300, **workers))
    found = [*history.epochs.values()]
    logged = validated(classifier(fitted()), adversary(), loader(41, 16, start=300))
    found.append({key.removeprefix("val/"): value for key, value in logged.items()})
    assert len(found) == 3
    for values in found:
        assert values == pytest.approx(found[0], rel=1e-6)


def first_order(n, batch_size, **kwargs):
    """What validation logs about Q_delta, and the same computed directly on all images at once."""
    x, y = digits(n, start=300)
    model = fitted()
    limit = kwargs.pop("limit_val_batches", None)
    callback = adversary(**kwargs)
    batches = loader(n, batch_size, start=300)
    door = {} if limit is None else {"limit_val_batches": limit}
    logged = validated(classifier(fitted()), callback, batches, **door)
    kept = n if limit is None else limit * batch_size
    x, y = x[:kept], y[:kept]
    attack = WFGSM(p=callback.ball.p, norm=callback.ball.norm, delta=callback.ball.delta, loss="redlr")
    result = attack(model, x, y)
    with torch.no_grad():
        clean, moved = model(x), model(result.x_adv)
    accuracy = (clean.argmax(1) == y).double().mean()
    v0, v_q = redlr(clean, y).double().mean(), redlr(moved, y).double().mean()
    expected = {
        "upsilon": result.upsilon,
        "ratio_upper": (moved.argmax(1) == y).double().mean() / accuracy,
        "v0": v0,
        "w0": 0.0,
        "v_q": v_q,
        "v_first_order": v0 + callback.ball.delta * result.upsilon,
        "ratio_lower_gradient": 1 - callback.ball.delta * result.upsilon / v0.abs(),
        "ratio_lower_attack": v_q / v0,
        "fgsm_spent": callback.ball.spent(result.distances),
    }
    return logged, {f"val/{key}": float(value) for key, value in expected.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("p", "norm", "delta"), [(2, "inf", 0.1), (2, 2, 0.6), (3, "inf", 0.1), ("inf", "inf", 0.1)])
@pytest.mark.parametrize("batch_size", [7, 16, 41])
def test_upsilon_of_the_whole_validation_set(p, norm, delta, batch_size):
    logged, expected = first_order(41, batch_size, p=p, norm=norm, delta=delta)
    assert {key: logged[key] for key in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_batch_scope_is_another_distribution():
    """The cheaper option: Upsilon of the key is still that of the set, but every batch is moved by its own."""
    logged, expected = first_order(41, 7, whole_set=False)
    assert logged["val/upsilon"] == pytest.approx(expected["val/upsilon"], rel=1e-6)
    assert logged["val/v_q"] != pytest.approx(expected["val/v_q"], rel=1e-3)
    one_batch, expected = first_order(41, 41, whole_set=False)
    assert one_batch["val/v_q"] == pytest.approx(expected["val/v_q"], rel=1e-6)


def test_limited_validation_is_a_smaller_set():
    logged, expected = first_order(41, 8, limit_val_batches=3)
    assert {key: logged[key] for key in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_limits_of_sanity_check_and_validation_differ():
    """The sanity check's Upsilon (2 batches) does not leak into the epoch's."""
    module = classifier(fitted(), optimizer=partial(torch.optim.SGD, lr=0.0))
    door = trainer([adversary()], num_sanity_val_steps=2)
    door.fit(module, loader(32, 16), loader(41, 7, start=300))
    _, expected = first_order(41, 41)
    assert float(door.callback_metrics["val/v_q"]) == pytest.approx(expected["val/v_q"], rel=1e-6)


@pytest.mark.slow
def test_nothing_is_left_to_chance():
    """Two runs with random starts and dropout are bitwise equal; another seed is another run."""

    def once(seed):
        torch.manual_seed(7)
        module = classifier(network(dropout=0.3), objective=Adversarial())
        trainer([adversary(seed=seed), SeedEpoch(0)], max_epochs=2).fit(module, datamodule=Arrays())
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    first = once(0)
    assert torch.equal(first, once(0))
    assert not torch.equal(first, once(1))


def test_documented_keys_every_epoch(tmp_path):
    module = classifier(fitted(), objective=WTrades())

    class Bar(Callback):
        def on_train_epoch_end(self, trainer, module):
            assert trainer.progress_bar_metrics.keys() >= {"train/loss_step"} | {f"val/{key}" for key in JUDGED}

    logger = CSVLogger(tmp_path, name="", version="")
    door = trainer([adversary(), Bar()], logger=logger, max_epochs=3, log_every_n_steps=1)
    door.fit(module, loader(48, 16), loader(41, 16, start=300))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    for epoch in range(3):
        logged = {key: value for row in rows if row["epoch"] == str(epoch) for key, value in row.items() if value}
        assert {key for key in logged if key.startswith("val/")} == KEYS
        assert logged.keys() >= {f"train/{key}" for key in ("loss", "loss_step", "clean_acc", "adv_acc", "kl", "ce")}
        assert logged.keys() >= {f"train/{key}" for key in ("upsilon", "spent", "zero_gradients")}
        assert float(logged["val/ratio"]) == pytest.approx(
            float(logged["val/adv_acc"]) / float(logged["val/clean_acc"]), rel=1e-6
        )
        assert float(logged["val/ratio_lower"]) == max(
            0.0, min(float(logged["val/ratio_lower_attack"]), float(logged["val/ratio_lower_gradient"]))
        )
        assert 0 < float(logged["val/spent"]) <= 0.1 * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [Standard, Adversarial, partial(FirstOrderPenalty, p=2, norm=2, delta=0.1)])
@pytest.mark.parametrize("with_adversary", [True, False])
@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * 1.5, y), r"images range over \[0, 1\.5\]"),
        (lambda x, y: (x - 0.2, y), r"images range over \[-0\.2, 0\.8\]"),
        (lambda x, y: (x.masked_fill(x > 0.9, torch.nan), y), "images range over"),
        (lambda x, y: ((x * 255).to(torch.uint8), y), "images are torch.uint8"),
        (lambda x, y: (x, y + 1), r"labels range over \[1, 10\] but the network has 10 outputs"),
        (lambda x, y: (x, y - 1), r"labels range over \[-1, 8\]"),
        (lambda x, y: (x, y.float()), "give one integer per image"),
    ],
)
def test_bad_batches(objective, with_adversary, stage, spoil, message):
    good, bad = loader(32, 32), DataLoader(TensorDataset(*spoil(*digits(32))), batch_size=32)
    sets = (bad, good) if stage == "train" else (good, bad)
    with pytest.raises(UserError, match=message):
        trainer([adversary()] if with_adversary else []).fit(classifier(objective=objective()), *sets)


class Told:
    """The part of a Trainer that the warning looks at."""

    def __init__(self, one, many, epoch=0, sanity_checking=False):
        self.callback_metrics = {"val/fgsm_acc": torch.tensor(one), "val/adv_acc": torch.tensor(many)}
        self.current_epoch, self.sanity_checking = epoch, sanity_checking


def warned(callback, sequence):
    """Epochs after which a warning came."""
    epochs = []
    for epoch, (one, many) in enumerate(sequence):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            callback.on_validation_end(Told(one, many, epoch), None)
        epochs += [epoch] if caught else []
        assert all("catastrophic overfitting" in str(w.message) for w in caught)
    return epochs


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ([(0.5, 0.4), (0.6, 0.5), (0.9, 0.1), (0.95, 0.0)], [2, 3]),  # masking
        ([(0.5, 0.4), (0.6, 0.3)], [1]),
        ([(0.5, 0.4), (0.6, 0.5), (0.7, 0.6)], []),  # both rise
        ([(0.7, 0.6), (0.6, 0.5), (0.5, 0.4)], []),  # both fall
        ([(0.5, 0.4), (0.4, 0.5)], []),  # the good opposite
        ([(0.5, 0.4), (0.6, 0.39)], []),  # within tolerance
        ([(0.5, 0.4), (0.5, 0.1)], []),  # the one-step accuracy stands still
    ],
)
def test_overfitting_warning(sequence, expected):
    assert warned(OverfittingWarning(tolerance=0.02), sequence) == expected


def test_overfitting_warning_survives_a_checkpoint():
    before, after = OverfittingWarning(), OverfittingWarning()
    warned(before, [(0.5, 0.4)])
    after.load_state_dict(before.state_dict())
    assert warned(after, [(0.6, 0.3)]) == [0]
    assert warned(OverfittingWarning(), [(0.6, 0.3)]) == []


def test_overfitting_warning_ignores_the_sanity_check_and_missing_adversaries():
    callback = OverfittingWarning()
    callback.on_validation_end(Told(0.0, 0.9, sanity_checking=True), None)
    assert warned(callback, [(0.5, 0.4)]) == []
    trainer([callback]).fit(classifier(), loader(32, 16), loader(32, 16))


def test_overfitting_warning_knows_that_few_images_tell_little():
    """A fall by 4 points is noise on 100 images, and none on 10,000."""
    for images, expected in ((100, []), (10_000, [1])):
        callback = OverfittingWarning()
        callback._images = images
        assert warned(callback, [(0.5, 0.4), (0.6, 0.36)]) == expected


def test_validation_history():
    history = ValidationHistory()
    module = classifier(objective=Adversarial())
    trainer([adversary(), history], max_epochs=2).fit(module, loader(48, 16), loader(32, 16))
    assert list(history.epochs) == [0, 1]
    assert {f"val/{key}" for key in history.epochs[0]} == KEYS
    assert history.epochs[0] != history.epochs[1]
    restored = ValidationHistory()
    restored.load_state_dict(history.state_dict())
    assert restored.epochs == history.epochs


def test_seed_epoch():
    """The same numbers for the same epoch, others for another epoch, seed or rank."""

    def drawn(seed, epoch, rank):
        stand = type("Stand", (), {"current_epoch": epoch, "global_rank": rank})()
        SeedEpoch(seed).on_train_epoch_start(stand, None)
        return torch.rand(3).tolist()

    cases = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 1, 1)]
    assert [drawn(*case) for case in cases] == [drawn(*case) for case in cases]
    assert len({tuple(drawn(*case)) for case in cases}) == len(cases)


@pytest.mark.slow
def test_adversarial_images(tmp_path):
    """Real PNG files of the asked number of images, every second epoch, none from the sanity check."""
    from matplotlib import image

    pictures = AdversarialImages(str(tmp_path / "deep/images"), number=5, every_n_epochs=2)
    trainer([adversary(), pictures], max_epochs=4, num_sanity_val_steps=2).fit(
        classifier(fitted()), loader(32, 16), loader(32, 16)
    )
    files = sorted((tmp_path / "deep/images").iterdir())
    assert [file.name for file in files] == ["epoch_001.png", "epoch_003.png"]
    height, width, _ = image.imread(files[0]).shape
    assert height >= 300
    assert width >= 5 * 80
    wide = AdversarialImages(str(tmp_path / "wide"), number=10)
    trainer([adversary(), wide]).fit(classifier(fitted()), loader(32, 16), loader(32, 16))
    assert image.imread(tmp_path / "wide/epoch_000.png").shape[1] > 1.7 * width


def test_no_images_without_an_adversary(tmp_path):
    pictures = AdversarialImages(str(tmp_path / "images"))
    trainer([pictures]).fit(classifier(), loader(32, 16), loader(32, 16))
    assert not (tmp_path / "images").exists()


class Rates(Callback):
    """The learning rate of every step, and the one that is logged for every epoch."""

    def __init__(self):
        self.seen, self.logged = [], []

    def on_train_batch_start(self, door, *args):
        self.seen.append(door.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_start(self, door, *args):
        self.logged += [float(door.callback_metrics["train/learning_rate"])] if door.current_epoch else []

    def on_train_end(self, door, *args):
        self.logged += [float(door.callback_metrics["train/learning_rate"])]


def rates(scheduler, epochs=2, **kwargs):
    """Of a run of 4 steps an epoch, in which the logged rates have to be those of its epochs' last steps."""
    watch = Rates()
    module = classifier(optimizer=partial(torch.optim.Adam, lr=1e-3), scheduler=scheduler)
    trainer([watch, LearningRate()], max_epochs=epochs, **kwargs).fit(module, loader(64, 16))
    assert watch.logged == pytest.approx(watch.seen[3::4])
    return watch.seen


def test_schedulers_that_know_the_number_of_steps_step_after_each():
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, pct_start=0.5, cycle_momentum=False)
    seen = rates(one_cycle)
    assert len(set(seen)) == 8
    assert seen[0] == pytest.approx(1e-2 / 25)
    assert max(seen) == seen[3] == pytest.approx(1e-2)
    assert seen[-1] == pytest.approx(1e-2 / 25e4)
    assert rates(one_cycle, epochs=5, max_steps=8) == seen
    halved = rates(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    assert halved == pytest.approx([1e-3] * 4 + [5e-4] * 4)
    with pytest.raises(UserError, match=r"set trainer\.max_epochs"):
        rates(one_cycle, epochs=-1)
    with pytest.raises(UserError, match="a run of 2 steps does not suit this scheduler"):
        rates(one_cycle, max_steps=2)
