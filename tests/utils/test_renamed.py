"""A stored configuration means today what it meant when it was written."""

import pytest

from wdro_train.utils.renamed import DEFAULTS_OF_0_1_0, RENAMED, with_present_names

PGD, KL_PGD = "wdro_train.attacks.WPGD", "wdro_train.attacks.KLPGD"


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_former_names_and_former_defaults(name):
    config = {"callbacks": {"one": {"_target_": name}}, "attack": {"_target_": PGD, "p": 2, "steps": 3}}
    now = with_present_names(config)
    assert now["callbacks"]["one"]["_target_"] == RENAMED[name]
    assert now["attack"] == {"_target_": PGD, "p": 2, "steps": 3, "random_start": False}
    assert with_present_names(now) == now


def test_the_former_default_steps_of_kl_pgd():
    former = {"callbacks": [{"_target_": "wdro_train.callbacks.SeedEpoch"}], "attack": {"_target_": KL_PGD, "p": 2}}
    assert with_present_names(former)["attack"] == {"_target_": KL_PGD, "p": 2, "steps": 50}


def test_a_present_configuration_is_left_as_it_is():
    config = {"callbacks": [{"_target_": RENAMED["wdro_train.callbacks.SeedEpoch"]}], "attack": {"_target_": PGD}}
    assert with_present_names(config) == config


def test_former_defaults_are_no_longer_the_defaults():
    from wdro_train.attacks import KLPGD, WPGD

    threat = {"p": 2, "norm": 2, "delta": 0.1}
    for name, attack in ((PGD, WPGD(**threat)), (KL_PGD, KLPGD(**threat)._attack)):
        assert all(getattr(attack, key) != value for key, value in DEFAULTS_OF_0_1_0[name].items())
