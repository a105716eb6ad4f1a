"""A length of time as people say it."""

from __future__ import annotations


def duration(seconds: float, *, in_minutes: bool = False) -> str:
    """`41 s`, `3 min 12 s`, `2 h 05 min`; an estimate is given in whole minutes, at least one."""
    whole = 60 * max(1, round(seconds / 60)) if in_minutes else round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    parts = [f"{minutes} min"] if minutes else []
    if rest or not minutes:
        parts.append(f"{rest:02d} s" if minutes else f"{rest} s")
    return " ".join(parts)
