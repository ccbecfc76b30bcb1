"""Tools for dates, which models get wrong in their heads. The entry point `calendar` names this module."""

from __future__ import annotations

from datetime import date, timedelta

from rlm import tool


@tool
def working_days(first: date, last: date, holidays: list[date] | None = None) -> int:
    """The number of working days between two dates, both included.

    Args:
        first: the first day, as 2026-12-31
        last: the last day
        holidays: days that do not count
    """
    days = (first + timedelta(number) for number in range((last - first).days + 1))
    return sum(day.weekday() < 5 and day not in (holidays or []) for day in days)


@tool
def weekday(day: date) -> str:
    """The day of the week of a date."""
    return f"{day:%A}"
