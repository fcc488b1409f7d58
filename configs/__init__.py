"""Settings and presets."""

from .guidance import GuidanceTerm
from .settings import Settings, load_settings, preset_names

__all__ = ["GuidanceTerm", "Settings", "load_settings", "preset_names"]
