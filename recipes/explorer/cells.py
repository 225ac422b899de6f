"""How numbers are written in the cells of the explorer."""

ABSENT, NOT_FINITE = "-", "not finite"


def loss_text(value: float | None) -> str:
    """Return a loss with four decimals; None is a loss that was not finite."""
    return NOT_FINITE if value is None else f"{value:.4f}"


def last_text(value: tuple[float | None] | None) -> str:
    """Return the newest loss of a curve, as `RunState.last` gives it."""
    return ABSENT if value is None else loss_text(value[0])


def number_text(value: float | None, digits: int = 4) -> str:
    """Return any number with so many significant digits; None is absent."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.{digits}g}"


def signed_text(value: float | None) -> str:
    """Return a difference with its sign."""
    return ABSENT if value is None else f"{value:+.4f}"


def duration_text(seconds: float | None) -> str:
    """Return a duration in two units: ``3 h 20 min``, ``45 s``."""
    if seconds is None:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def step_text(step: int | None, total: int | None) -> str:
    """Return ``120/1,500``; what is not known is absent."""
    if step is None:
        return ABSENT if total is None else f"0/{total:,}"
    return f"{step:,}" if total is None else f"{step:,}/{total:,}"
