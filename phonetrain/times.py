"""Durations and times of day as people write them: `2h`, `1h30m`, `23:30`."""

import datetime
import re

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)s)?")


def duration(text: str) -> float:
    """`"1h30m"` -> 5400.0 seconds. Raises ValueError for anything that is not hours, minutes and seconds above zero."""
    found = DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise ValueError(f"{text!r} is no duration such as 2h, 90m or 1h30m")
    return total


def clock_time(text: str) -> datetime.time:
    """`"23:30"` -> that time of day. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if not found:
        raise ValueError(f"{text!r} is no time of day such as 23:30")
    return datetime.time(*map(int, found.groups()))
