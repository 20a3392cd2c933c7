"""Model constructors: shape, number of classes and normalisation in, a module on [0, 1] images out."""

from wdro_train.models.expectation import ExpectedLogits
from wdro_train.models.layers import Normalize
from wdro_train.models.resnet import resnet18
from wdro_train.models.small_cnn import small_cnn

__all__ = ["ExpectedLogits", "Normalize", "resnet18", "small_cnn"]
