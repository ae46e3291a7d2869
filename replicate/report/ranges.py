"""Arithmetic on printed numbers, where 3.4 stands for anything from 3.35 to 3.45."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

_FLOAT_NOISE = 1e-9


class Range(NamedTuple):
    """A value and the interval that the rounding of its inputs allows; equal ends for an exact number."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Range:
        return cls(float(value), float(value), float(value))

    def __add__(self, other: Number) -> Range:  # type: ignore[override]
        other = _range(other)
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def __sub__(self, other: Number) -> Range:
        other = _range(other)
        return Range(self.value - other.value, self.low - other.high, self.high - other.low)

    def __mul__(self, other: Number) -> Range:  # type: ignore[override]
        other = _range(other)
        ends = [a * b for a in self[1:] for b in other[1:]]
        return Range(self.value * other.value, min(ends), max(ends))

    def __truediv__(self, other: Number) -> Range:
        """A number over itself is exactly 1. Raises ZeroDivisionError when `other` may be 0."""
        if other is self:
            return Range.exact(1)
        other = _range(other)
        if other.low <= 0 <= other.high:
            raise ZeroDivisionError(f"a divisor between {other.low:g} and {other.high:g} may be 0")
        return self * Range(1 / other.value, 1 / other.high, 1 / other.low)

    def __rsub__(self, other: float) -> Range:
        return _range(other) - self

    def __abs__(self) -> Range:
        return self if self.value >= 0 else Range(-self.value, -self.high, -self.low)

    __radd__, __rmul__ = __add__, __mul__  # type: ignore[assignment]


Number = Range | float


def _range(number: Number) -> Range:
    return number if isinstance(number, Range) else Range.exact(number)


def printed(cell: Mapping[str, Any]) -> Range:
    """The numbers that rounding would print as this cell."""
    return _around(cell["value"], cell["unit_last_digit"] / 2)


def agrees(computed: Range, cell: Mapping[str, Any]) -> bool:
    """Whether a computed number is the printed one at printed precision.

    "Over" and "under" agree with anything above and below. "About" 60 or 1.6 agrees with what rounds to it at
    its last digit that is not zero: 55 to 65, 1.55 to 1.65.
    """
    slack = _FLOAT_NOISE * max(1.0, abs(cell["value"]))
    if cell["relation"] == ">":
        return computed.high >= cell["value"] - slack
    if cell["relation"] == "<":
        return computed.low <= cell["value"] + slack
    about = cell["relation"] == "~"
    rounded = _around(cell["value"], last_nonzero_digit(cell["value"]) / 2) if about else printed(cell)
    return computed.low <= rounded.high + slack and computed.high >= rounded.low - slack


def last_nonzero_digit(value: float) -> float:
    """What the last digit that is not 0 is worth: 60 -> 10, 1.6 -> 0.1."""
    digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()[1:]
    return float(10.0**exponent) if any(digits) else 1.0


def _around(value: float, half: float) -> Range:
    return Range(value, value - half, value + half)
