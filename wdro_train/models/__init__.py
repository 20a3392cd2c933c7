"""Model constructors: shape, number of classes and normalisation in, a module on [0, 1] images out."""

from wdro_train.models.expectation import ExpectedLogits
from wdro_train.models.huggingface import huggingface_model
from wdro_train.models.layers import Normalize, normalized
from wdro_train.models.lipschitz_networks import lipschitz_cnn, lipschitz_mlp
from wdro_train.models.onnx_models import onnx_model
from wdro_train.models.preact_resnet import preact_resnet18
from wdro_train.models.resnet import resnet18
from wdro_train.models.robustbench_models import robustbench_model
from wdro_train.models.small_cnn import small_cnn
from wdro_train.models.timm_models import timm_model
from wdro_train.models.torchvision_models import torchvision_model
from wdro_train.models.weights import load_weights
from wdro_train.models.wide_resnet import wide_resnet

__all__ = [
    "ExpectedLogits",
    "Normalize",
    "huggingface_model",
    "lipschitz_cnn",
    "lipschitz_mlp",
    "load_weights",
    "normalized",
    "onnx_model",
    "preact_resnet18",
    "resnet18",
    "robustbench_model",
    "small_cnn",
    "timm_model",
    "torchvision_model",
    "wide_resnet",
]
