"""Image classifiers of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional
from wdro_train.utils.tensor_files import load_failure


class Logits(nn.Module):
    """The logits alone of a network that returns them among other outputs.

    Args:
        network: Takes `pixel_values`, returns an object with `logits`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape [B, m]."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def huggingface_model(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    pretrained: bool = True,
    options: Mapping[str, Any] | None = None,
) -> nn.Sequential:
    """Normalise as the network's image processor does, then the network.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        mean: Channel means, where the network comes without image processor.
        std: Channel standard deviations, the same.
        name: A folder with `config.json`, or a name on the hub.
        pretrained: With its weights (another number of classes gets a new last layer); false for random ones.
        options: Changes to its configuration, such as `image_size`; `trust_remote_code: true` runs the code that
            comes with the network.

    Raises:
        UserError: transformers is not installed, or finds no image classifier there.
    """
    transformers = optional("transformers", "models")
    changes = dict(options or {})
    # Said to every loader in so many words: left open, transformers asks on the terminal.
    code = {"trust_remote_code": bool(changes.pop("trust_remote_code", False))}
    try:
        config = transformers.AutoConfig.from_pretrained(name, num_labels=num_classes, **changes, **code)
        auto = transformers.AutoModelForImageClassification
        network = (
            auto.from_pretrained(name, config=config, ignore_mismatched_sizes=True, **code)
            if pretrained
            else auto.from_config(config, **code)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name={name} is no image classifier that transformers can read ({load_failure(error)}); give a "
            "folder with config.json and its weights, or a name on the hub"
        ) from error
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        return nn.Sequential(Normalize(mean, std), Logits(network))
    preset, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    if preset.get("do_normalize", True):
        mean, std = preset.get("image_mean") or mean, preset.get("image_std") or std
    else:
        mean, std = [0.0] * shape[0], [1.0] * shape[0]
    return nn.Sequential(Normalize(mean, std), Logits(network))
