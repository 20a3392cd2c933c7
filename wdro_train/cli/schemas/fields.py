"""The kinds of values that settings have, each with what is said of a value that does not fit and how to mend it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from torchvision import datasets

from wdro_train.theory.losses import LOSSES
from wdro_train.utils.numbers import parse_number

_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short"}
SAID = "said"


@dataclass(frozen=True)
class Said:
    """Puts what is wrong with a value, and what to choose instead, in place of pydantic's own words.

    Attributes:
        wrong: What the value is said to be; the sentence is "<key>=<value> <wrong>; <fix>".
        fix: What to do.
        outside: The same as `wrong` for values of the right type but outside the range.
    """

    wrong: str
    fix: str
    outside: str = "is out of range"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The inner kind of value with our words around it."""
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            kinds = {one["type"] for one in error.errors()}
            wrong, fix = (self.outside if kinds <= _RANGE else self.wrong), self.fix
            if "int_type" in kinds and isinstance(value, float) and value.is_integer():
                wrong, fix = "is not written as a whole number", f"write {int(value)}"
            raise PydanticCustomError(SAID, "{reason}", {"reason": f"{wrong}; {fix}"}) from None


def _number(value: Any) -> float:
    number = parse_number(value, "")
    if math.isnan(number):
        raise ValueError("nan")
    return number


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("infinite")
    return value


def _at_least(least: float) -> AfterValidator:
    def check(value: float) -> float:
        if value < least:
            raise ValueError("too small")
        return value

    return AfterValidator(check)


def _loss(value: Any) -> Any:
    if not is_node(value) and str(value).lower() not in LOSSES:
        raise ValueError("unknown")
    return value


def _torchvision_set(value: str) -> str:
    if value not in datasets.__all__:
        raise ValueError("unknown")
    return value


def _node(value: Any) -> Any:
    if not is_node(value):
        raise ValueError("not a node")
    return value


def is_node(value: Any) -> bool:
    """Whether a value describes an object that Hydra builds."""
    return isinstance(value, Mapping) and "_target_" in value


def _fractional(wrong: str = "is not a number") -> Said:
    return Said(wrong, "write it like 2, 0.5, inf or 8/255")


_WHOLE = "is not a whole number"
_NUMBER = "is not a finite number"
Count = Annotated[int, Field(strict=True, ge=1), Said(_WHOLE, "choose 1 or more")]
Natural = Annotated[int, Field(strict=True, ge=0), Said(_WHOLE, "choose 0 or more")]
CountOrAll = Annotated[
    Annotated[int, Field(strict=True, ge=1)] | Literal[-1], Said(_WHOLE, "choose 1 or more, or -1 for no limit", _WHOLE)
]
Classes = Annotated[int, Field(strict=True, ge=2), Said(_WHOLE, "choose 2 or more", "is too few classes")]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1), Said(_WHOLE, "choose 0 to 4294967295")]
Flag = Annotated[bool, Field(strict=True), Said("is neither true nor false", "choose true or false")]
Text = Annotated[str, Field(strict=True, min_length=1), Said("is not a text", "give a name or a path")]
Path = Annotated[str, Field(strict=True, min_length=1), Said("is not a path", "give the path of a file or folder")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), Said(_NUMBER, "choose more than 0")]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), Said(_NUMBER, "choose 0 or more")]
AtLeastOne = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False), Said(_NUMBER, "choose 1 or more")]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False), Said(_NUMBER, "choose one such as 0.5")]
Share = Annotated[float, Field(strict=True, gt=0, lt=1), Said(_NUMBER, "choose a share between 0 and 1")]
UpToOne = Annotated[float, Field(strict=True, gt=0, le=1), Said(_NUMBER, "choose more than 0 and at most 1")]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1), Said(_NUMBER, "choose 0 or more and less than 1")]
Unit = Annotated[float, Field(strict=True, ge=0, le=1), Said(_NUMBER, "choose 0 to 1")]
Number = Annotated[Any, AfterValidator(_number), _fractional()]
FiniteNumber = Annotated[
    Any,
    AfterValidator(_number),
    AfterValidator(_finite),
    _at_least(0),
    Said(_NUMBER, "choose 0 or more, as 0.5 or 1/2"),
]
Orders = Annotated[
    list[Annotated[Any, AfterValidator(_number), _at_least(1)]],
    Field(strict=True, min_length=1),
    Said("is not a list of Wasserstein orders", "choose orders from 1 to inf, as [1,2,inf]", "is empty"),
]
Radii = Annotated[
    list[Annotated[Any, AfterValidator(_number), AfterValidator(_finite), _at_least(0)]],
    Field(strict=True, min_length=1),
    Said("is not a list of radii", "choose finite ones of 0 or more, as [0.05,8/255]", "is empty"),
]
PositiveRadii = Annotated[
    list[Annotated[Any, AfterValidator(_number), AfterValidator(_finite), Field(gt=0)]],
    Field(strict=True, min_length=1),
    Said("is not a list of radii", "choose finite ones above 0, as [0.05,8/255]", "is not a list of radii above 0"),
]
Loss = Annotated[Any, AfterValidator(_loss), Said("is not a loss", f"choose {', '.join(LOSSES)}")]
Losses = Annotated[
    list[Annotated[str, AfterValidator(_loss)]],
    Field(strict=True, min_length=1),
    Said("is not a list of losses", f"choose from {', '.join(LOSSES)}, as [ce,redlr]", "is empty"),
]
Shape = Annotated[
    list[Annotated[int, Field(strict=True, ge=1)]],
    Field(strict=True, min_length=3, max_length=3),
    Said("is not a shape", "give channels, height and width, as [3,32,32]", "is not a shape"),
]
Means = Annotated[
    list[Annotated[float, Field(strict=True, allow_inf_nan=False)]],
    Field(strict=True, min_length=1),
    Said("is not a list of numbers", "give one a channel, as [0.5,0.5,0.5]", "is empty"),
]
Deviations = Annotated[
    list[Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]],
    Field(strict=True, min_length=1),
    Said("is not a list of numbers above 0", "give one a channel, as [0.5,0.5,0.5]", "is not a list of positive ones"),
]
_Means = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Deviations = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Normalization = Annotated[
    tuple[
        _Means | Annotated[list[_Means], Field(min_length=1)],
        _Deviations | Annotated[list[_Deviations], Field(min_length=1)],
    ],
    Said("is no normalisation", "give [mean,std], as [0.5,0.25] or [[0.49,0.48,0.45],[0.25,0.24,0.26]]"),
]
Milestones = Annotated[
    list[Annotated[int, Field(strict=True, ge=0)]],
    Field(strict=True),
    Said("is not a list of epochs", "give whole numbers, as [75,90]", "is not a list of epochs"),
]
Words = Annotated[
    list[Annotated[str, Field(strict=True, min_length=1)]] | Annotated[str, Field(strict=True, min_length=1)],
    Said("is not a list of patterns", "give names such as [0.*,2.*]"),
]
Checkpoints = Annotated[
    Annotated[str, Field(strict=True, min_length=1)]
    | Annotated[list[Annotated[str, Field(strict=True, min_length=1)]], Field(min_length=1)],
    Said("is not a checkpoint", "give the path of a .ckpt file, or a list of them", "is empty"),
]
Labels = Annotated[
    Annotated[str, Field(strict=True, min_length=1)]
    | Annotated[list[Annotated[str, Field(strict=True, min_length=1)]], Field(min_length=1)],
    Said("is not a list of names", "give one for each network, as [ours,baseline]", "is empty"),
]
Folders = Annotated[
    dict[Literal["train", "val", "test"], str | None],
    Said("is not a folder for each set", "as {train: train, val: val}"),
]
Settings = Annotated[
    dict[str, Any], Field(strict=True), Said("is not a group of settings", "write it like {key: value}")
]
Node = Annotated[
    Any, AfterValidator(_node), Said("describes no object", "give its _target_ and settings, or leave it out")
]
Nodes = Annotated[
    dict[str, Node | None], Field(strict=True), Said("is not a group of objects", "name one option of the group")
]
TorchvisionSet = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_torchvision_set),
    Said("is not a data set of torchvision", "as CIFAR10 or MNIST"),
]
Devices = Annotated[
    Annotated[int, Field(strict=True, ge=1)]
    | Literal[-1, "auto", "-1"]
    | Annotated[str, Field(strict=True, pattern=r"^(0*[1-9]\d*|\d+(,\d+)+,?|\d+,)$")]
    | Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(strict=True, min_length=1)],
    Said("is not a number of devices", "choose 1 or more, -1 for all, or a list of their numbers"),
]
BatchLimit = Annotated[
    Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(strict=True, gt=0, le=1)],
    Said("is neither a number of batches nor a share of them", "choose 1 or more, a share up to 1.0, or null for all"),
]
BatchLimitOrNone = Annotated[
    Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(strict=True, ge=0, le=1)],
    Said("is neither a number of batches nor a share of them", "choose 0 or more, a share up to 1.0, or null for all"),
]
