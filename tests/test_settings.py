"""Settings: what fills them, what is refused and in which words, what their digest names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.configs import Settings, load_settings, preset_names
from ldvid.configs.settings import parse_assignment
from ldvid.errors import SettingsError
from ldvid.stages.swap.guidance import build_terms


def test_presets_are_valid_and_buildable() -> None:
    assert {"cpu", "fast", "quality", "paper"} <= set(preset_names())
    for name in preset_names():
        settings = load_settings(name)
        assert settings.preset == name
        assert settings.guidance, f"{name} would not guide at all"
        assert len(build_terms(settings.guidance)) == len(settings.guidance)


def test_later_layers_win(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("steps = 7\nseed = 3\nmask_grow = 1.5\n", encoding="utf-8")
    settings = load_settings(
        "cpu", config=config, overrides={"seed": 4, "pack": None}, assignments=["steps=9"]
    )
    assert (settings.steps, settings.seed, settings.mask_grow) == (9, 4, 1.5)
    assert settings.pack == load_settings("cpu").pack, "a flag not given must not override"


def test_a_term_of_the_guidance_can_be_changed_alone() -> None:
    before = load_settings("cpu").guidance
    name = before[0].term
    after = load_settings("cpu", assignments=[f"guidance.{name}.scale=123.5"]).guidance
    assert after[0].scale == 123.5
    assert after[0].schedule == before[0].schedule
    assert after[1:] == before[1:]


def test_terms_are_added_with_scale_one_and_never_twice() -> None:
    before = load_settings("paper").guidance
    after = load_settings("paper", guidance=["geometry", "identity"]).guidance
    assert after[: len(before)] == before
    assert [(t.term, t.scale) for t in after[len(before) :]] == [("geometry", 1.0)]
    by_set = load_settings("paper", assignments=["guidance.geometry.weights={mouth = 2.0}"]).guidance
    assert (by_set[-1].scale, by_set[-1].model_extra) == (1.0, {"weights": {"mouth": 2.0}})


def test_presets_use_the_papers_terms_alone_in_paper() -> None:
    """``background`` as printed, and the file's hash, are no settings of a preset."""
    paper = load_settings("paper")
    assert [t.term for t in paper.guidance] == ["identity", "segmentation"]
    assert "background" not in paper.model_dump()
    for name in preset_names():
        assert all("sha256" not in t for t in load_settings(name).model_dump(mode="json")["guidance"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps=0", "steps"),
        ("steps=many", "steps"),
        ("stepz=3", "known settings: "),
        ("steps", "key=value"),
        ("=3", "key=value"),
        ("start_level=1.5", "start_level"),
        ("gradient=sideways", "gradient"),
        ("encoder.crf=3", "guidance.TERM.FIELD"),
        ("guidance=3", "guidance"),
        ("guidance.identity.scale=-1", "guidance"),
        ("segment_frames=50", "multiple of keyframe_interval"),
    ],
)
def test_bad_assignments_name_what_is_wrong(assignment: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings("cpu", assignments=[assignment])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset_and_unreadable_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--preset best.*cpu"):
        load_settings("best")
    missing = tmp_path / "none.toml"
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load_settings("cpu", config=missing)
    missing.write_text("steps = = 3")
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load_settings("cpu", config=missing)


@given(st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.booleans()))
def test_assignment_reads_toml_values(value: float) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert parse_assignment(f"key={text}") == ("key", value)


def test_digest_names_every_setting_that_changes_the_picture() -> None:
    base = Settings()
    same = Settings.model_validate(base.model_dump())
    assert base.digest() == same.digest()
    assert base.model_copy(update={"segment_frames": 96}).digest() == base.digest()
    changed = {
        "seed": 1, "steps": 21, "start_level": 0.6, "mask_grow": 5.0, "codec": "libx265", "pack": "other"
    }  # fmt: skip
    digests = {base.model_copy(update={k: v}).digest() for k, v in changed.items()}
    assert len(digests | {base.digest()}) == len(changed) + 1


@pytest.mark.parametrize("text", ["smoothing=inf", "mask_grow=nan", "guidance.identity.scale=inf"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(SettingsError, match="finite"):
        load_settings("cpu", assignments=[text])
