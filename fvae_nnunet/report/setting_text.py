"""Values of settings as text."""

from __future__ import annotations

from typing import Any


def setting_text(value: Any) -> str:
    """A JSON value as text: yes and no, none for null, lists with commas, a typographic minus."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:.6g}".replace("-", "−") if isinstance(value, float) else str(value).replace("-", "−")
    if isinstance(value, list):
        return ", ".join(map(setting_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{key} {setting_text(inner)}" for key, inner in value.items())
    return "none" if value is None else str(value)
