"""Numbers as people read them: counts, shares, short forms, durations."""

from __future__ import annotations

UNKNOWN = "?"  # a duration that is not known yet


def clock(seconds: float | None) -> str:
    """42 -> "42 s", 65 -> "1:05", 3725 -> "1:02:05", None -> "?"."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """12345 -> "12.3 k", 2100000 -> "2.1 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def percent(share: float | None) -> str:
    """0.5 -> "50.00", None -> "-"."""
    return "-" if share is None else f"{100 * share:.2f}"


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `1,000 epochs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
