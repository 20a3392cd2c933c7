"""How much accuracy of any network is left on any set at every radius (an attack's upper bound), without Hydra.

>>> import torch
>>> from wdro_train.evaluation import robustness_curve
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
>>> batches = [(torch.rand(8, 1, 2, 2), torch.randint(3, (8,)))]
>>> curve = robustness_curve(model, batches, norm="inf")
>>> curve.accuracy(0.1, p=2) <= curve.accuracy(0.05, p=2) <= curve.clean_accuracy
True
"""

from wdro_train.evaluation.curve import robustness_curve

__all__ = ["robustness_curve"]
