"""One contract for images, labels and networks, whichever way they come in: it works, or a sentence says what to do."""

import copy
import functools
import math
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random_batch, small_network
from shell import trainer
from torch import nn
from torch.utils.data import DataLoader

from wdro_train.attacks import KLPGD, WFGSM, WPGD, WRM, BoundaryAttack, Lagrangian, MinimalDistance, Pool
from wdro_train.evaluation import robustness_curve
from wdro_train.metrics import CleanAccuracy
from wdro_train.objectives import Adversarial
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.contract import already_checked, check_batch, check_labels
from wdro_train.utils.errors import UserError

INF = math.inf
CLASSES = 5
Auxiliary = namedtuple("Auxiliary", ["logits", "aux"])


@dataclass
class Output:
    """As transformers' classifiers return it."""

    logits: torch.Tensor
    hidden_states: tuple = ()


class Wrapped(nn.Module):
    """A sound network whose answer is wrapped, or spoilt."""

    def __init__(self, change, spoil_weights=False):
        super().__init__()
        self.inner = small_network(classes=CLASSES)
        self.change = change
        if spoil_weights:
            nn.init.constant_(self.inner[1].bias, math.nan)

    def forward(self, x):
        return self.change(self.inner(x), self)


def plain(logits, network):
    return logits


def in_training(logits, network):
    return Auxiliary(logits, 2 * logits) if network.training else logits


def square_images_only(logits, network):
    raise AssertionError("Input height (6) doesn't match model (224).\nMore lines.")


def sometimes_nan(logits, network):
    return torch.where(torch.arange(len(logits))[:, None] == 1, math.nan, logits)


WORK = {
    "object with logits": lambda z, net: Output(z),
    "named tuple": lambda z, net: Auxiliary(z, z + 1),
    "auxiliary outputs in training": in_training,
    "dictionary": lambda z, net: {"logits": z, "features": z.exp()},
    "with feature maps": lambda z, net: (z, z[:, :, None, None]),
    "with a loss": lambda z, net: (z, z.sum()),
    "list": lambda z, net: [z],
}
REFUSED = {
    "probabilities": (lambda z, net: z.softmax(1), "returns probabilities, not logits"),
    "scaled probabilities": (lambda z, net: (100 * z).softmax(1), "returns probabilities, not logits"),
    "probabilities in an object": (lambda z, net: Output(z.softmax(1)), "returns probabilities, not logits"),
    "class numbers": (lambda z, net: z.argmax(1), r"returns torch\.int64, like class numbers"),
    "one number": (lambda z, net: z[:, 0], r"one number an image \(shape \(\d+,\)\); return a logit for each"),
    "one column": (lambda z, net: z[:, :1], r"one number an image \(shape \(\d+, 1\)\)"),
    "three dimensions": (lambda z, net: z[:, :, None], r"returns shape \(\d+, 5, 1\) for \d+ images"),
    "a mean": (lambda z, net: z.mean(0, keepdim=True), r"returns shape \(1, 5\) for \d+ images"),
    "two candidates": (
        lambda z, net: (z, z + 1),
        r"a tuple of 2 \(shape \(\d+, 5\), shape \(\d+, 5\)\); return logits",
    ),
    "loss first": (lambda z, net: (z.sum(), z), "a tuple of 2"),
    "no logits": (lambda z, net: {"scores": z, "boxes": z}, "a dict with the fields scores, boxes"),
    "nothing": (lambda z, net: None, "returns a NoneType"),
    "logits of another kind": (lambda z, net: {"logits": [z]}, "a dict with the fields logits"),
    "NaN": (lambda z, net: z * math.nan, r"NaN or infinite logits on \d+ of \d+ images"),
    "infinite": (lambda z, net: z / 0, r"NaN or infinite logits on \d+ of \d+ images"),
    "NaN on one image": (sometimes_nan, r"NaN or infinite logits on 1 of \d+ images"),
    "another size": (
        square_images_only,
        r"does not take images of shape \(1, 6, 6\) \(Input height \(6\) doesn't match model \(224\)\.\);",
    ),
}
NETWORKS = [
    *(pytest.param(Wrapped(change), None, id=name) for name, change in WORK.items()),
    *(pytest.param(Wrapped(change), says, id=name) for name, (change, says) in REFUSED.items()),
    pytest.param(
        Wrapped(plain, spoil_weights=True), r"weights of layer \S*1 \(\S*1\.bias\) are not finite", id="weights"
    ),
]

X, Y = random_batch(12, classes=CLASSES)
BATCHES = [
    pytest.param(lambda x, y: (x, y), None, id="tuple"),
    pytest.param(lambda x, y: [x, y], None, id="list"),
    pytest.param(lambda x, y: (x, y, torch.arange(len(y))), None, id="with positions"),
    pytest.param(lambda x, y: [x, y, torch.rand(len(y)), ["a file"] * len(y)], None, id="with names"),
    pytest.param(lambda x, y: {"image": x, "label": y, "id": y}, None, id="dictionary"),
    pytest.param(lambda x, y: {"pixel_values": x, "labels": y}, None, id="as transformers"),
    pytest.param(lambda x, y: {"target": y, "x": x}, None, id="in another order"),
    *(
        pytest.param(lambda x, y, dtype=dtype: (x, y.to(dtype)), None, id=f"labels {dtype}")
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
    ),
    pytest.param(lambda x, y: (x.double(), y), None, id="float64"),
    pytest.param(lambda x, y: (torch.where(x == 1, 1 + 1e-7, x), y), None, id="rounded up"),
    pytest.param(lambda x, y: (torch.where(x == 0, -1e-7, x), y), None, id="rounded down"),
    pytest.param(lambda x, y: x, r"one tensor of shape \(6, 1, 6, 6\); yield \(images, labels\)", id="no labels"),
    pytest.param(lambda x, y: [x], r"a list of 1 \(shape \(6, 1, 6, 6\)\); yield", id="no labels in a list"),
    pytest.param(lambda x, y: {"image": x}, r"no labels \(its fields: image\); name exactly one", id="none in it"),
    pytest.param(lambda x, y: {"a": x, "label": y}, r"no images \(its fields: a, label\)", id="which are images"),
    pytest.param(lambda x, y: {"x": x, "img": x, "y": y}, "has img and x for its images", id="two images"),
    pytest.param(lambda x, y: (x, y.tolist()), "the labels of a batch are a list of 6", id="labels in a list"),
    pytest.param(lambda x, y: (y, x), r"images are torch\.int64", id="labels first"),
    pytest.param(lambda x, y: (x, y.float()), "give one integer per image", id="float labels"),
    pytest.param(lambda x, y: (x, y > 2), "give one integer per image", id="bool labels"),
    pytest.param(lambda x, y: (x, nn.functional.one_hot(y, 5)), "like one-hot rows; give one integer", id="one-hot"),
    pytest.param(lambda x, y: (x, y[:, None]), "give one integer per image", id="column of labels"),
    pytest.param(lambda x, y: (x, y + 3), r"labels range over \[\d, \d\] but the network has 5", id="too many classes"),
    pytest.param(lambda x, y: (x, y.to(torch.uint8) + 200), r"range over \[20\d, 20\d\] but", id="large uint8 labels"),
    pytest.param(lambda x, y: ((255 * x).to(torch.uint8), y), "uint8; divide them by 255", id="uint8 images"),
    pytest.param(lambda x, y: (x * 1.01, y), r"images range over \[0, 1\.01\]", id="beyond 1"),
    pytest.param(lambda x, y: (x.sqrt().masked_fill(x == 1, math.nan), y), "they have NaN pixels", id="NaN pixels"),
]

THREAT = {"p": 2, "norm": 2, "delta": 0.3}
ATTACKS = [
    WFGSM(**THREAT),
    WPGD(**THREAT, steps=2, random_start=True, keep="last"),
    WPGD(**THREAT, steps=2, keep="cheapest", loss="redlr", random_start=False),
    KLPGD(**THREAT, steps=2),
    Lagrangian(**THREAT, steps=2),
    WRM(**THREAT, steps=2),
    Pool([WFGSM(**THREAT)]),
    BoundaryAttack(**THREAT, steps=2),
    MinimalDistance(norm=2, steps=2),
]


def changed(batch, change):
    return [change(x, y) for x, y in zip(batch[0].split(6), batch[1].split(6), strict=True)]


def curve_of(network, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return robustness_curve(network, batches, norm="inf", steps=3).distances.tolist()


def attack_with(attack):
    def attacked(network, batches):
        own = copy.deepcopy(attack)  # some learn from batch to batch
        torch.manual_seed(0)
        found = [own(network.eval(), b[0], b[1], generator=torch.Generator().manual_seed(0)) for b in batches]
        return torch.cat([one.x_adv for one in found]).flatten().tolist()

    return attacked


def validated(network, batches, adversary=True):
    module, loader = RobustClassifier(network), DataLoader(batches, batch_size=None)
    callbacks = (
        [DistributionalAdversary(WFGSM(**THREAT), val_attack=WPGD(**THREAT, steps=1, random_start=False))]
        if adversary
        else []
    )
    return list(trainer(callbacks).validate(module, loader, verbose=False)[0].values())


def validated_plainly(network, batches):
    return validated(network, batches, adversary=False)


def trained(network, batches):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = RobustClassifier(network, objective=Adversarial())
    run = trainer([DistributionalAdversary(WFGSM(**THREAT), val_attack=None)], max_epochs=1)
    try:
        run.fit(module, DataLoader(batches, batch_size=None))
        return [float(value) for value in run.callback_metrics.values()]
    finally:
        network.load_state_dict(before)


USES = [curve_of, validated, validated_plainly, trained]


@functools.cache
def sound(use):
    """What a use of the package makes of the plain network and the plain batches."""
    return use(Wrapped(plain), changed((X, Y), lambda x, y: (x, y)))


@pytest.mark.parametrize("use", [*USES, *(pytest.param(attack_with(a), id=type(a).__name__) for a in ATTACKS)])
@pytest.mark.parametrize(("network", "says"), NETWORKS)
def test_networks(use, network, says):
    batches = changed((X, Y), lambda x, y: (x, y))
    network.train()
    if says is None:
        assert use(network, batches) == pytest.approx(sound(use), rel=1e-5, abs=1e-6, nan_ok=True)
    else:
        with pytest.raises(UserError, match=says):
            use(network, batches)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("change", "says"), BATCHES)
def test_batches(use, change, says):
    if says is None:
        found = use(Wrapped(plain), changed((X, Y), change))
        assert found == pytest.approx(sound(use), rel=1e-5, abs=1e-6, nan_ok=True)
    else:
        with pytest.raises(UserError, match=says):
            use(Wrapped(plain), changed((X, Y), change))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_attacks_take_any_integer_labels_and_rounded_pixels(attack):
    expected = attack_with(attack)(Wrapped(plain), [(X, Y)])
    rounded = torch.where(X == 1, 1 + 1e-7, torch.where(X == 0, -1e-7, X))
    for x, y in ((X, Y.to(torch.uint8)), (X, Y.int()), (rounded, Y)):
        found = attack_with(attack)(Wrapped(plain), [(x, y)])
        assert found == pytest.approx(expected, abs=1e-6)
        assert min(found) >= 0
        assert max(found) <= 1


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_labels_are_read_as_what_they_are(data):
    """In bfloat16 257 is 256, and 511 is 512."""
    dtype = data.draw(st.sampled_from(INTEGERS))
    images = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    limits = torch.iinfo(dtype)
    largest = min(limits.max, 2**40)
    values = data.draw(st.lists(st.integers(max(limits.min, -3), largest), min_size=1, max_size=5))
    classes = data.draw(st.integers(2, max(values) + 2) if max(values) > 0 else st.just(2))
    batch = check_batch(torch.rand(len(values), 3).to(images), torch.tensor(values).to(dtype))
    assert batch.y.dtype == torch.int64
    assert batch.y.tolist() == values
    assert batch.labels == (min(values), max(values))
    if min(values) < 0 or max(values) >= classes:
        with pytest.raises(UserError, match=f"but the network has {classes} outputs"):
            check_labels(batch.labels, classes)
    else:
        check_labels(batch.labels, classes)


@pytest.mark.parametrize(("label", "classes"), [(511, 512), (257, 257), (256, 257), (300, 301)])
def test_bfloat16_images_and_many_classes(label, classes):
    x, y = X[:2].bfloat16(), torch.tensor([0, label])
    attack, network = WFGSM(p=2, norm=2, delta=0.1), small_network(classes=classes)
    if label < classes:
        assert attack(network, x, y).x_adv.isfinite().all()
    else:
        with pytest.raises(UserError, match=rf"labels range over \[0, {label}\] but the network has {classes}"):
            attack(network, x, y)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(1, 20), st.floats(0.1, 30), st.integers(0, 2**31))
def test_sums_of_one_by_chance_are_no_probabilities(classes, images, scale, seed):
    """Scores of one image may look like probabilities; on other images a sound network's do not."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(images, 1, 6, 6, generator=generator)
    y = torch.randint(classes, (images,), generator=generator)
    network = small_network(seed=seed % 1000, classes=classes)
    with torch.no_grad():  # the first image's logits are (1, 0, ..., 0)
        wanted = torch.zeros(classes)
        wanted[0] = 1
        network[-1].weight *= scale
        network[-1].bias += wanted - network(x[:1])[0]
    attack = WFGSM(p=2, norm=2, delta=0.1)
    assert attack(network, x[:1], y[:1]).x_adv.isfinite().all()
    with pytest.raises(UserError, match="returns probabilities"):
        attack(nn.Sequential(network, nn.Softmax(1)), x, y)
    assert attack(nn.Sequential(network, nn.LogSoftmax(1)), x, y).x_adv.isfinite().all()


def test_a_loader_that_can_be_read_once():
    whole = curve_of(small_network(), changed((X, Y), lambda x, y: (x, y)))
    assert curve_of(small_network(), iter(changed((X, Y), lambda x, y: (x, y)))) == whole
    with pytest.raises(UserError, match="there is no batch"):
        robustness_curve(small_network(), [], norm=2)


def test_nan_is_no_mistake_of_the_network():
    metric = CleanAccuracy()
    logits = torch.tensor([[1.0, 0.0], [math.nan, 1.0]])
    metric.update(logits, torch.zeros(2, dtype=torch.uint8), torch.tensor([1.0, 0.0]))  # padding may be anything
    assert metric.compute()["clean_acc"] == 1
    with pytest.raises(UserError, match="NaN or infinite logits on clean images"):
        metric.update(logits, torch.zeros(2, dtype=torch.uint8), torch.ones(2))


def test_nan_of_a_later_batch_is_refused():
    eighth = Wrapped(plain)(X[8:9])[0]  # in another batch its logits are rounded otherwise
    network = Wrapped(lambda z, net: torch.where(torch.isclose(z, eighth).all(1, keepdim=True), math.nan, z))
    for use in (curve_of, validated, validated_plainly):
        with pytest.raises(UserError, match="NaN or infinite logits"):
            use(network, changed((X, Y), lambda x, y: (x, y)))


class Quantised(nn.Module):
    def forward(self, x):
        return (x > 0.5).float()


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Root(nn.Module):
    """An infinite slope at black pixels."""

    def forward(self, x):
        return x.sqrt() ** 2


@pytest.mark.parametrize(
    ("front", "sentences"),
    [
        (Quantised, ["gradient of 100.0% of the correct images vanishes", "flipped nowhere"]),
        (Noise, ["the network is random"]),
        (Root, ["gradients were not finite"]),
        (nn.Identity, []),
    ],
)
def test_the_curve_comes_with_the_warnings_of_an_evaluation(front, sentences):
    network = nn.Sequential(front(), small_network())
    y = network(X).argmax(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        curve = robustness_curve(network, [(X, y)], norm=2, steps=10)
    told = [str(one.message) for one in caught]
    assert curve.clean_accuracy > 0
    assert bool(told) == bool(sentences)
    for sentence in sentences:
        assert any(sentence in text for text in told), told


def test_a_look_leaves_everything_as_it_was():
    network = nn.Sequential(Noise(), small_network(batch_norm=True), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = RobustClassifier(network)
    torch.manual_seed(0)
    module.inspector.examine(module, X, Y)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(part.training for part in network.modules())


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x, y),
        lambda x, y: [x],
        lambda x, y: x,
        lambda x, y: {"image": x},
        lambda x, y: {"pixel_values": x, "labels": y},
    ],
    ids=["labels", "list", "images", "dictionary", "dictionary with labels"],
)
@pytest.mark.parametrize("adversary", [True, False])
def test_predict(change, adversary):
    callbacks = [DistributionalAdversary(WFGSM(**THREAT))] if adversary else []
    network = Wrapped(WORK["object with logits"])
    batches = DataLoader(changed((X, Y), change), batch_size=None)
    logits = torch.cat(trainer(callbacks).predict(RobustClassifier(network), batches))
    torch.testing.assert_close(logits, network.inner(X))
    with pytest.raises(UserError, match="images range over"):
        trainer(callbacks).predict(RobustClassifier(network), DataLoader([change(255 * X, Y)], batch_size=None))


def test_a_checked_batch_that_is_changed_in_place_is_looked_at_again():
    batch = check_batch(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    with already_checked(batch):
        assert check_batch(batch.x, batch.y) is batch
        batch.x.add_(2.0)
        with pytest.raises(UserError, match="scale them"):
            check_batch(batch.x, batch.y)
        batch.x.sub_(2.0)
        batch.y.fill_(7)
        assert check_batch(batch.x, batch.y).labels == (7, 7)


@torch.inference_mode()
def test_a_checked_batch_of_inference_mode_is_recognised():
    batch = check_batch(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert batch.x.is_inference()
    with already_checked(batch):
        assert check_batch(batch.x, batch.y) is batch
        assert check_batch(batch.x, batch.y.clone()) is not batch
