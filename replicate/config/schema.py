"""Types and the base class that all entries of the configuration files share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from replicate.errors import UserError

AUGMENTATIONS = ("rand-m9-mstd0.5-inc1", "three_augment", "three_augment_plus")
"""Automatic augmentation: timm's RandAugment string, DeiT III's 3-Augment, and the same with more jitter."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Betas = tuple[Ratio, Ratio]
Difficulty = Literal["p2dist", "p2dist_approx", "neighbours_3x3", "inverse_distance_5x5", "nearest_patch"]

NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
"""Names of runs, budgets, data sets and papers become parts of paths and of shell commands."""
UNKNOWN = re.compile("unknown key `.*?`")


def _rising(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError(f"{list(scale)}: the smaller share of the image comes first")
    return scale


def _known_augmentation(name: str) -> str:
    if name not in AUGMENTATIONS:
        raise ValueError(f"{name!r} is unknown; choose null, {', '.join(AUGMENTATIONS)}")
    return name


CropScale = Annotated[tuple[Positive, Annotated[float, Field(gt=0.0, le=1.0)]], AfterValidator(_rising)]
AutoAugment = Annotated[str, AfterValidator(_known_augmentation)]


class Strict(BaseModel):
    """Frozen; refuses unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def validated(model: type[Strict], content: Any, where: str) -> Any:
    """`content` as a `model`. Raises UserError that starts with `where` and names the key and the value.

    where  ends in ": ", or in "." before a key; the message then says whose key is unknown
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error, model.model_fields)
        if where.endswith(".") and (unknown := UNKNOWN.match(fault)):
            file, _, owner = where[:-1].rpartition(": ")
            where, owner = f"{file}: " * bool(file), owner.replace("runs.", "run ")
            fault = f"{unknown[0]} of {owner}{fault[unknown.end() :]}"
        raise UserError(f"{where}{fault}") from None


def first_fault(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first fault in one line; for an unknown key, the closest of the `known` ones."""
    faults = error.errors(include_url=False, include_context=True)
    fault = faults[0]
    key = ".".join(str(part) for part in fault["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(fault["loc"][-1]), list(known), n=1)
        return f"unknown key `{key}`" + (f"; did you mean `{close[0]}`?" if close else "") + more
    if fault["type"] == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}{more}"
    if fault["type"] == "missing":
        return f"{key} is missing{more}"
    return f"{key} = {fault['input']!r}: {fault['msg'][0].lower() + fault['msg'][1:]}{more}"
