"""numbers -> what people read: three digits, no exponents, units in the singular where there is one."""

MINUTE, HOUR = 60, 3600


def number(value: float, digits: int = 3) -> str:
    """`1.05`, `120`, `49,900`: so many digits, and every whole one."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def counted(amount: int, unit: str) -> str:
    """`1 unit`, `1,200 units`; the unit is given in the plural."""
    return f"{amount:,} {singular(unit) if amount == 1 else unit}"


def singular(unit: str) -> str:
    """`step` of `steps`; `MB` stays."""
    return unit.removesuffix("s")


def pace(amount: float, seconds: float, unit: str) -> str:
    """`28 steps/s`, or `1.12 s/checkpoint` where it is slower than one a second; empty if nothing was done."""
    if not amount:
        return ""
    rate = amount / max(seconds, 1e-9)
    if rate < 1 and unit != singular(unit):
        return f"{number(1 / rate)} s/{singular(unit)}"
    told = number(rate)
    return f"{told} {singular(unit) if told == '1' else unit}/s"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    hours, rest = divmod(round(seconds / MINUTE), MINUTE)
    return f"{hours:,} h {rest} min"
