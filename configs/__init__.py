"""Settings and presets."""

from .settings import GuidanceTerm, Settings, load_settings, preset_names

__all__ = ["GuidanceTerm", "Settings", "load_settings", "preset_names"]
