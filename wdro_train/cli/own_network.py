"""Rewrites what people type about a network of their own, whose arguments no configuration file lists."""

from __future__ import annotations

# What is done with any network, whatever makes it; `wdro_train.config.own_networks` has the same, and imports torch.
_ANY_NETWORK = ("model.weights", "model.weights_key", "model.normalize")


def own_network(arguments: list[str], config_name: str) -> list[str]:
    """Let `model._target_=my_package.Net model.hidden=64` mean this constructor with these arguments and no others.

    To Hydra it would mean the default network's arguments with another constructor, and `model.hidden` an unknown key.
    Where `model=...` chooses a network, or Hydra's own signs (`+`, `~`) are used, the arguments mean what they mean to
    Hydra. A checkpoint to judge brings the arguments itself.

    Args:
        arguments: As typed, without the program's name.
        config_name: Of the command's configuration.

    >>> own_network(["model._target_=my_package.Net", "model.hidden=64", "seed=1"], "train")
    ['model=own', '++model._target_=my_package.Net', '++model.hidden=64', 'seed=1']
    >>> own_network(["ckpt_path=a.ckpt", "model._target_=my_package.Net"], "evaluate")
    ['ckpt_path=a.ckpt', '++model._target_=my_package.Net']
    >>> own_network(["model=resnet18", "model.weights=net.pt"], "train")
    ['model=resnet18', '++model.weights=net.pt']
    >>> own_network(["model=small_cnn", "model._target_=my_package.Net"], "train")
    ['model=small_cnn', 'model._target_=my_package.Net']
    """
    keys = [argument.partition("=")[0] for argument in arguments]
    chosen = next((a.partition("=")[2] for a in arguments if a.startswith("model=")), None)
    if {"-cn", "--config-name"} & set(keys) or {"~model", "+model"} & set(keys):
        return arguments
    own = chosen == "own" or (chosen is None and "model._target_" in keys)
    if not own and chosen is None and config_name == "evaluate":
        return arguments
    judged = config_name == "evaluate" and ("ckpt_path" in keys or not any(key == "data" for key in keys))
    rewritten = [
        f"++{argument}" if key in _ANY_NETWORK or (own and key.startswith("model.")) else argument
        for argument, key in zip(arguments, keys, strict=True)
    ]
    return ["model=own", *rewritten] if own and chosen is None and not judged else rewritten
