"""Randomised smoothing: l_2 certificates of the smoothed classifier of any network.

The smoothed classifier g(x) is the class that f(x + e) with e ~ N(0, sigma^2 I) gives most often. If f(x + e) = y with
probability at least p > 1/2, then g = y wherever ||x' - x||_2 < sigma Phi^-1(p) (Cohen, Rosenfeld, Kolter 2019,
arXiv 1902.02918, theorem 1). Their procedure CERTIFY bounds p from below by the Clopper-Pearson interval.
"""

from __future__ import annotations

import torch
from scipy.stats import beta
from scipy.stats import norm as gaussian
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates.base import Radii
from wdro_train.theory.losses import correct
from wdro_train.utils.contract import check_batch, check_labels
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32


class RandomizedSmoothing:
    """Radii sigma Phi^-1(p_i) of the smoothed classifier, p_i a lower bound on how often noise leaves image i correct.

    The noise is not clamped: the smoothed classifier is defined by noisy inputs that leave [0, 1], so the network must
    accept them. The error probability is divided by the number of images of the whole set, so that all radii of the
    set, and with them the certified curve, hold at once with probability 1 - alpha.

    An image takes n0 forward passes, and n more if most of the first n0 are for its label. Samples and images go
    through the network in one stream of batches.

    The defaults of n0 and alpha are those of Cohen et al.; their n is 100,000.

    Args:
        sigma: Standard deviation of the noise, in pixel units, > 0.
        total_images: Images of the whole set, over however many calls it is certified.
        n0: Samples that pick the class.
        n: Samples that bound its probability.
        alpha: Probability that any radius of the whole set is wrong, in (0, 1).
        batch_size: Noisy images per forward pass.
    """

    norm = 2.0

    def __init__(
        self,
        *,
        sigma: float,
        total_images: int,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        batch_size: int = 1000,
    ) -> None:
        if not 0 < sigma < float("inf"):
            raise UserError(f"sigma={sigma:g} is no noise level; choose a positive one")
        if not 0 < alpha < 1:
            raise UserError(f"alpha={alpha:g} is no error probability; choose it in (0, 1)")
        if min(n0, n, total_images, batch_size) < 1:
            raise UserError(
                f"n0={n0}, n={n}, total_images={total_images}, batch_size={batch_size}: choose at least 1 of each"
            )
        self.sigma, self.alpha = float(sigma), float(alpha)
        self.n0, self.n, self.total_images, self.batch_size = int(n0), int(n), int(total_images), int(batch_size)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch; see `Certificate`.

        `correct` says where the label has the most votes of the n samples: an estimate, on which no radius depends.

        Raises:
            UserError: More images than `total_images`, or input that no attack would take either.
        """
        x, y, labels = check_batch(x, y)
        if len(x) > self.total_images:
            raise UserError(f"total_images={self.total_images} but the batch has {len(x)}; give the whole set's size")
        with attack_mode(model), full_float32(), torch.no_grad():
            x, y = x.clone().float(), y.clone().long()
            first = self._votes(model, x, self.n0, generator)
            check_labels(labels, first.shape[1])
            rows = correct(first.double(), y).nonzero().squeeze(1)
            radii = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            majority = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            if len(rows):
                votes = self._votes(model, x[rows], self.n, generator)
                majority[rows] = correct(votes.double(), y[rows])
                radii[rows] = self.radius(votes.gather(1, y[rows, None]).squeeze(1))
            about = f"the smoothed classifier, sigma {self.sigma:g}"
            return Radii(radii, majority, self.norm, 1 - self.alpha, about)

    def radius(self, count: Tensor) -> Tensor:
        """The radius sigma Phi^-1(p), with p the Clopper-Pearson lower bound at error alpha / total_images.

        Args:
            count: How many of the n samples voted for the label, shape [N].

        Returns:
            Shape [N], float64; 0 where p <= 1/2.
        """
        k = count.cpu().numpy()
        p = beta.ppf(self.alpha / self.total_images, k, self.n - k + 1)  # NaN for k = 0, which abstains too
        certified = torch.as_tensor(self.sigma * gaussian.ppf(p), dtype=torch.float64, device=count.device)
        return torch.where(certified > 0, certified, 0.0)

    def _votes(self, model: nn.Module, x: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
        """How often each class has strictly the largest logit under noise, int64 [N, m]; no class at ties and NaN."""
        votes: Tensor | None = None
        pairs = len(x) * samples
        for start in range(0, pairs, self.batch_size):
            image = torch.arange(start, min(start + self.batch_size, pairs), device=x.device) // samples
            noisy = x[image]
            noise = torch.empty_like(noisy).normal_(0.0, self.sigma, generator=generator)
            logits = forward(model, noisy + noise).float()
            top = logits.topk(2, dim=1)
            strict = (top.values[:, 0] > top.values[:, 1]).long()
            if votes is None:
                votes = torch.zeros(len(x), logits.shape[1], dtype=torch.int64, device=x.device)
            votes.index_put_((image, top.indices[:, 0]), strict, accumulate=True)
        assert votes is not None
        return votes
