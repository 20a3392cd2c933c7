"""Every key of the configuration is sorted by what a checkpoint remembers of it; one that nobody sorted is measured."""

import copy
import functools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from wdro_train.config.build import plain
from wdro_train.config.resolvers import register_resolvers
from wdro_train.training.resuming import Kind, Resumption, compare
from wdro_train.utils.errors import UserError

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"
BASE = ["run_dir=here", "name=some", "attack.delta=0.03"]


@pytest.fixture(scope="module")
def composed():
    """The resolved configuration of `train.py` with some overrides."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):

        @functools.cache
        def configuration(*overrides):
            return plain(compose("train", [*BASE, *overrides]))

        yield configuration


def checkpoint(epochs=2):
    loop = {
        "epoch_progress": {"current": {"ready": epochs, "processed": epochs}},
        "epoch_loop.batch_progress": {"is_last_batch": True},
    }
    return {"loops": {"fit_loop": loop}, "optimizer_states": [], "global_step": 10 * epochs}


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        ("attack.delta=0.15", {Kind.MEASURE}),
        ("attack.delta=3/100", set()),
        ("attack.p=inf", {Kind.MEASURE}),
        ("attack.norm=2", {Kind.MEASURE}),
        ("callbacks.adversary.val_attack.attacks.0.steps=3", {Kind.MEASURE}),
        ("callbacks.adversary.val_attack=null", {Kind.MEASURE}),
        ("callbacks.adversary.first_order.loss=ce", {Kind.MEASURE}),
        ("callbacks.adversary.whole_set=false", {Kind.MEASURE}),
        ("callbacks.checkpoint.monitor=val/clean_acc", {Kind.MEASURE}),
        ("callbacks.checkpoint.mode=min", {Kind.MEASURE}),
        ("callbacks=worst_case", {Kind.MEASURE}),
        ("data.split_seed=1", {Kind.MEASURE}),
        ("data.val_fraction=0.3", {Kind.MEASURE}),
        ("data.eval_batch_size=32", {Kind.MEASURE}),
        ("data.mean=[0.5]", {Kind.MEASURE}),
        ("trainer.limit_val_batches=1", {Kind.MEASURE}),
        ("trainer.precision=bf16-mixed", {Kind.MEASURE}),
        ("+unheard_of=1", {Kind.MEASURE}),
        ("+data.unheard_of=1", {Kind.MEASURE}),
        ("+trainer.unheard_of=1", {Kind.MEASURE}),
        ("method=ema attack.p=2", {Kind.MEASURE}),
        ("attack.steps=3", {Kind.ATTACK}),
        ("attack=worst_case", {Kind.ATTACK}),
        ("optimizer.lr=1e-6", {Kind.OPTIMIZER}),
        ("optimizer=sgd", {Kind.OPTIMIZER}),
        ("scheduler=multistep", {Kind.SCHEDULE}),
        ("trainer.max_epochs=40", {Kind.SCHEDULE}),
        ("method=awp attack.p=2", {Kind.OTHER}),
        ("data.num_workers=2", {Kind.OTHER}),
        ("augment=crop_flip", {Kind.OTHER}),
        ("logger=csv", {Kind.OTHER}),
        ("run_dir=there name=other test=false", {Kind.OTHER}),
        ("trainer=ddp_sim", {Kind.OTHER}),
        ("callbacks.progress=null callbacks.images=null", {Kind.OTHER}),
        ("+callbacks.warmup._target_=wdro_train.training.callbacks.RadiusWarmup", {Kind.OTHER}),
    ],
)
def test_kinds(composed, overrides, kinds):
    changes = compare(composed(), composed(*overrides.split()))
    found = {change.kind for change in changes}
    assert found - {Kind.OTHER} == kinds - {Kind.OTHER}, changes
    assert bool(changes) == bool(kinds)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ("attack.p=inf", Kind.OTHER),
        ("attack.p=inf trainer.limit_val_batches=1.0", Kind.OTHER),
        ("attack.p=inf trainer.limit_val_batches=1", Kind.MEASURE),
        ("attack.p=2", Kind.MEASURE),
    ],
)
def test_evaluation_batches_matter_where_they_share_a_budget_or_are_counted(composed, overrides, kind):
    common = overrides.split()
    (change,) = compare(composed(*common), composed(*common, "data.eval_batch_size=32"))
    assert change.kind == kind


def resumption(composed, *overrides, epochs=2):
    return Resumption.of(checkpoint(epochs), composed(), composed(*overrides), "r0/last.ckpt")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("attack.delta=0.15", "the threat changed (attack.delta 0.03 -> 0.15): best epoch and history start afresh"),
        (
            "attack.norm=2 data.split_seed=4",
            "the threat and the data changed (attack.norm inf -> 2, data.split_seed 0 -> 4): "
            "best epoch and history start afresh",
        ),
        (
            "callbacks.checkpoint.monitor=val/clean_acc",
            "the choice of the best epoch changed (callbacks.checkpoint.monitor val/adv_acc -> val/clean_acc): "
            "best epoch and history start afresh",
        ),
        ("optimizer.lr=1 attack.steps=2", None),
    ],
)
def test_sentence(composed, overrides, sentence):
    assert resumption(composed, *overrides.split()).sentence() == sentence


@pytest.mark.parametrize(
    ("overrides", "limits", "message"),
    [
        (
            "optimizer=sgd",
            (4,),
            r"torch\.optim\.Adam, which says nothing to torch\.optim\.SGD; .*finetune\.ckpt_path=r0",
        ),
        ("finetune.freeze=[0.*]", (4,), r"frozen weights.*finetune\.ckpt_path=r0"),
        ("", (1,), r"trained for 2 epochs already, more than trainer\.max_epochs=1; choose trainer\.max_epochs=2"),
        ("", (None, 19), r"trained for 20 steps already, more than trainer\.max_steps=19"),
        ("attack.delta=0.15", (2,), r"nothing would be measured anew although attack\.delta 0\.03 -> 0\.15"),
    ],
)
def test_refusals(composed, overrides, limits, message):
    with pytest.raises(UserError, match=message) as caught:
        resumption(composed, *overrides.split()).refuse_impossible(*limits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limits", [(2,), (3,), (-1,), (None, 20), (None, -1)])
def test_what_can_go_on(composed, limits):
    resumption(composed).refuse_impossible(*limits)


def test_weights_alone_cannot_be_resumed():
    with pytest.raises(UserError, match=r"finetune\.ckpt_path=some\.ckpt"):
        Resumption.of({"state_dict": {}}, {}, {}, "some.ckpt")


def test_an_argument_that_is_new_says_what_was_done_without_it(composed):
    """At its constructor's default; another value is a change."""
    earlier = copy.deepcopy(composed())
    del earlier["model"]["activation"]
    assert compare(earlier, composed()) == []
    (change,) = compare(earlier, composed("model.activation=elu"))
    assert change.key == "model.activation"
