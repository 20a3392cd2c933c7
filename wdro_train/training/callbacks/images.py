"""Clean and adversarial images with predictions: grids as PNG files, to TensorBoard and to W&B, there also a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.adversarial_module import AdversarialModule
from wdro_train.training.adversary import AdversarialJudge, BatchEvidence
from wdro_train.utils.contract import unpack
from wdro_train.utils.files import replacing
from wdro_train.utils.image_grid import draw_pairs

COLUMNS = ["clean image", "adversarial image", "label", "prediction", "prediction under attack", "distance"]
_DPI = 100  # matplotlib's own: images of up to 64 pixels a side are enlarged, and an epoch's file stays small


class AdversarialImages(L.Callback):
    """After validation, pictures of the first images of the set before and after the validation attack.

    Args:
        folder: Where the PNG files go.
        number: Images shown.
        every_n_epochs: How often.
    """

    def __init__(self, folder: str, number: int = 8, every_n_epochs: int = 1) -> None:
        self.folder = Path(folder)
        self.number = number
        self.every_n_epochs = every_n_epochs
        self._shown: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images of the first batch."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not trainer.sanity_checking
        evidence = outputs.get("evidence") if isinstance(outputs, dict) else None
        if batch_idx or not due or not trainer.is_global_zero:
            return
        if isinstance(evidence, BatchEvidence) and evidence.attacked is not None:
            x, y = unpack(batch)
            clean, adv = evidence.clean_logits.argmax(1), evidence.attacked.logits.argmax(1)
            parts = (x, evidence.attacked.x_adv, y, clean, adv)
            self._shown = tuple(part[: self.number].cpu() for part in parts)  # type: ignore[assignment]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, save and log."""
        if self._shown is None or not isinstance(pl_module, AdversarialModule):
            return
        if not isinstance(pl_module.judge, AdversarialJudge):
            return
        ball = pl_module.judge.ball
        title = f"epoch {trainer.current_epoch + 1}: W_{ball.p:g}, l_{ball.norm:g}, delta {ball.delta:.4g}"
        shown, self._shown = self._shown, None
        figure = draw_pairs(*shown, title=title)
        path = self.folder / f"epoch_{trainer.current_epoch:03d}.png"
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=_DPI)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("adversarial_images", [str(path)])
                logger.log_table("adversarial_examples", COLUMNS, table_rows(*shown, ball=ball))
            elif isinstance(logger, TensorBoardLogger):
                picture = pil_to_tensor(Image.open(path).convert("RGB"))
                logger.experiment.add_image("adversarial_images", picture, trainer.global_step)


def table_rows(
    x: Tensor, x_adv: Tensor, y: Tensor, clean: Tensor, adv: Tensor, ball: WassersteinBall
) -> list[list[Any]]:
    """The images as rows of a W&B table with the columns `COLUMNS`.

    Args:
        x: Clean images in [0, 1], shape [k, C, H, W].
        x_adv: Adversarial images, same shape.
        y: Labels, shape [k].
        clean: Predictions on x, shape [k].
        adv: Predictions on x_adv, shape [k].
        ball: Gives the norm of the distances.
    """
    import wandb  # which takes most of a second; the runs that log nothing there do without

    before, after = ([wandb.Image(to_pil_image(image.float())) for image in images] for images in (x, x_adv))
    distances = ball.ground.distances(x_adv.float() - x.float())
    numbers = (part.tolist() for part in (y, clean, adv, distances))
    return [list(row) for row in zip(before, after, *numbers, strict=True)]
