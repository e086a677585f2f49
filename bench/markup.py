"""Elements of XML and HTML as text that is already escaped. Knows nothing of what is written with it."""

from __future__ import annotations

from html import escape

Attribute = str | float | None

VOID = frozenset(
    {"meta", "br"}
)  # HTML's elements without an end; all others have one, in HTML even when they are empty


class Markup(str):
    """Text that is markup: put into an element as it is. Any other string is escaped there."""

    __slots__ = ()


def number(value: float) -> str:
    """Six significant digits, no exponent, no trailing zeros: what SVG and CSS take."""
    text = f"{value:.6g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if "e" in text else text


def percent(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def tag(element: str, *children: str | None, **attributes: Attribute) -> Markup:
    """One element, well-formed as XML: `tag("rect", x=1, stroke_width=2)`. None leaves an attribute or a child out.

    A trailing underscore frees a name from Python (`class_`), other underscores become hyphens.
    """
    words = [element]
    for name, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else number(value)
            words.append(f'{name.rstrip("_").replace("_", "-")}="{escape(text)}"')
    inner = join(*children)
    return Markup(f"<{' '.join(words)}/>" if element in VOID else f"<{' '.join(words)}>{inner}</{element}>")


def join(*children: str | None) -> Markup:
    """Children one after the other, escaped where they are no markup."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c, quote=False) for c in children if c is not None))
