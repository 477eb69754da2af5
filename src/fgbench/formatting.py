"""Numbers as text for tables and messages."""

MAX_WIDTH = 10


def format_number(value: float, form: str) -> str:
    """The value in a format such as ``.4f``; three digits and an exponent where that would be too long.

    >>> format_number(0.25, ".4f"), format_number(3.6e31, ".4f"), format_number(-1234567.0, "+.4f")
    ('0.2500', '3.6e+31', '-1.23e+06')
    """
    text = format(value, form)
    return text if len(text) <= MAX_WIDTH else format(value, f"{'+' if form.startswith('+') else ''}.3g")
