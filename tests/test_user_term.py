"""Guidance terms from a user's own file: loading, identity, mistakes, the example, the command."""

from __future__ import annotations

import hashlib
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ldvid.cli import main
from ldvid.configs import GuidanceTerm, load_settings
from ldvid.errors import SettingsError
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.records import SourceFace
from ldvid.stages.swap.guidance import Context, SourcePicture, arcface_theta, build_terms
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.sampler import Sampling, guided_swap

CPU = torch.device("cpu")
MY_TERM = Path(__file__).resolve().parents[1] / "examples/my_term.py"


@pytest.fixture(scope="module")
def context(networks: Networks, faces: tuple[SourceFace, SourceFace]) -> Context:
    """Two portraits as targets, each to become the other."""
    target = to_tensor(np.stack([f.image for f in faces]), CPU)
    with torch.no_grad():
        parse = networks.parse(target)
    mask = torch.zeros(2, 1, 256, 256)
    mask[:, :, 64:232, 56:200] = 1
    landmarks = np.stack([f.landmarks for f in faces])
    source = torch.from_numpy(np.stack([f.embedding for f in reversed(faces)]))
    theta = arcface_theta(landmarks, networks.identity_template(), 256, 112)
    picture = SourcePicture(target[:1], faces[0].landmarks[None])
    return Context(networks, source, target, parse, mask, theta, torch.from_numpy(landmarks), picture)


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


GOOD = """
    class Mine:
        def __init__(self, strength=1.0):
            self.strength = strength

        def loss(self, x_hat, context):
            return self.strength * x_hat.square().mean((1, 2, 3))
"""


def test_a_term_is_loaded_with_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        "paper", guidance=["mine.py:Mine"],
        assignments=["guidance.Mine.scale=2", "guidance.Mine.strength=0.5", "guidance.identity.scale=3"],
    )  # fmt: skip
    *others, mine = build_terms(settings.guidance)
    assert [t.name for t in others] == ["identity", "segmentation"] and others[0].scale == 3
    assert (mine.name, mine.scale, mine.weight(0.99)) == ("Mine", 2.0, 2.0)
    loss = mine.loss(torch.full((2, 3, 4, 4), 2.0), None)  # type: ignore[arg-type]
    assert loss.tolist() == [2.0, 2.0]
    assert load_settings("cpu", guidance=["mine.py:Mine"]).guidance[-1].scale == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"], "nothing is left beside the user's file"


def test_a_config_file_names_terms_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "deep", GOOD)
    config = tmp_path / "deep/settings.toml"
    config.write_text('[[guidance]]\nterm = "mine.py:Mine"\nstrength = 4\nschedule = [[0.5, 1.0]]\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    (term,) = build_terms(load_settings("cpu", config=config).guidance)
    assert term.weight(0.4) == 1 and term.weight(0.6) == 0
    with pytest.raises(SettingsError, match=r"mine\.py:Mine.*can't be read"):
        load_settings("cpu", guidance=["mine.py:Mine"])  # a flag's file is sought in the working directory


def test_the_file_is_part_of_the_settings(tmp_path: Path) -> None:
    """Its content changes the digest, where it lies does not; the record names it without its folder."""
    file = write(tmp_path, GOOD)
    one = load_settings("cpu", guidance=[f"{file}:Mine"])
    (tmp_path / "copy").mkdir()
    copy = load_settings("cpu", guidance=[f"{write(tmp_path / 'copy', GOOD)}:Mine"])
    assert one.digest() == copy.digest()
    dumped = one.model_dump(mode="json")["guidance"]
    assert dumped[-1]["term"] == "mine.py:Mine" and len(dumped[-1]["sha256"]) == 64
    assert "sha256" not in dumped[0]
    x = torch.full((1, 3, 4, 4), 3.0)
    assert build_terms(one.guidance)[-1].loss(x, None).item() == 9  # type: ignore[arg-type]
    write(tmp_path, GOOD.replace("square", "abs"))
    edited = load_settings("cpu", guidance=[f"{file}:Mine"])
    assert edited.digest() != one.digest()
    assert build_terms(edited.guidance)[-1].loss(x, None).item() == 3  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="is not the file these settings were made with"):
        build_terms(one.guidance)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import no_such_module_at_all\n",
            ["mine.py, line 1", "ModuleNotFoundError", "no_such_module_at_all"],
        ),
        ("a = 1\nclass Mine\n    pass\n", ["mine.py, line 2", "SyntaxError"]),
        ("class Other:\n    pass\n", ["has no class Mine"]),
        ("class Mine:\n    pass\n", ["has no method loss(x_hat, context)"]),
        ("class Mine:\n    def __init__(self, width):\n        pass\n", ["width"]),
        ("class Mine:\n    def __init__(self):\n        1 / 0\n", ["mine.py, line 3", "ZeroDivisionError"]),
    ],
)
def test_a_file_that_cannot_be_used_is_told_why(tmp_path: Path, text: str, words: list[str]) -> None:
    settings = load_settings("cpu", guidance=[f"{write(tmp_path, text)}:Mine"])
    with pytest.raises(SettingsError) as caught:
        build_terms(settings.guidance)
    for word in ["guidance term mine.py:Mine", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("term", ["mine.py", "mine.py:", "folder/mine", "mine.py:not a name", "C:mine"])
def test_references_are_written_one_way(term: str) -> None:
    with pytest.raises(SettingsError, match=r"FILE\.py:Class"):
        load_settings("cpu", guidance=[term])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return x_hat.mean()", [r"tensor of shape \(2,\), not \(\)"]),
        ("return [1.0, 2.0]", ["not list"]),
        ("return x_hat.detach().mean((1, 2, 3))", ["has no gradient"]),
        ("return x_hat.mean((1, 2, 3)) * float('nan')", ["at step 0 its loss is not finite"]),
        (
            "return (x_hat.mean((1, 2, 3)) * 0).sqrt()",
            ["at step 0 its loss is finite but its gradient is not"],
        ),
        ("return x_hat.nosuch()", ["mine.py, line 5: AttributeError", "nosuch"]),
    ],
)
def test_a_loss_that_cannot_be_used_names_its_term(
    tmp_path: Path, context: Context, body: str, words: list[str]
) -> None:
    """Beside a good term, in the loop itself."""
    text = f"class Mine:\n    strength = 1\n\n    def loss(self, x_hat, context):\n        {body}\n"
    entry = GuidanceTerm(term=f"{write(tmp_path, text)}:Mine")
    terms = build_terms([GuidanceTerm(term="identity"), entry])
    with torch.no_grad():
        z0 = context.networks.encode(context.target)
    with pytest.raises(SettingsError) as caught:
        guided_swap(context, z0, z0, torch.ones(2, 1, 32, 32), terms, Sampling(1, 0.4, preview=True))
    for word in ["guidance term Mine: ", *words]:
        assert caught.match(word)


def test_the_example_pulls_the_colour(context: Context) -> None:
    """Its value and gradient, by hand; and through the loop the skin goes where it is told."""
    entry = GuidanceTerm(term=f"{MY_TERM}:ColourTerm", colour=[255, 0, 0], strength=2.0)  # type: ignore[call-arg]
    (red,) = build_terms([entry])
    flat = torch.tensor([0.25, 0.5, 0.75])[None, :, None, None].expand(2, 3, 128, 128)
    assert red.loss(flat, context).tolist() == pytest.approx([2 * (0.75**2 + 0.5**2 + 0.75**2)] * 2)
    (own,) = build_terms([GuidanceTerm(term=f"{MY_TERM}:ColourTerm")])
    assert float(own.loss(context.target, context).max()) < 1e-9
    with torch.no_grad():
        z0 = context.networks.encode(context.target)
    sampling = Sampling(2, 0.4, step_size=0.1, preview=True)
    m = torch.nn.functional.avg_pool2d(context.mask, 8)
    colours = []
    for terms in ([], [red]):
        with torch.no_grad():
            picture = context.networks.decode(guided_swap(context, z0, z0, m, terms, sampling))
        colours.append((picture * context.mask).sum((2, 3)) / context.mask.sum((2, 3)))
    far = [(c - c.new_tensor([1.0, 0, 0])).norm(dim=1) for c in colours]
    assert (far[1] < far[0] - 0.04).all(), colours
    redness = [c[:, 0] - c[:, 1:].mean(1) for c in colours]
    assert (redness[1] > redness[0] + 0.04).all(), colours


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """The command in this process, so that torch is loaded once."""
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err


def test_the_command_takes_a_term_and_records_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    example_clip: Path,
    example_face: Path,
) -> None:
    """``--guidance my_term.py:ColourTerm``: the face turns blue; an edited term is another job."""
    mine = write(tmp_path, MY_TERM.read_text(encoding="utf-8"), "my_term.py")
    monkeypatch.chdir(tmp_path)
    common: list[str | Path] = [
        "swap", example_clip, "-s", example_face, "--end", "0.1", "--set", "steps=2", "--set", "batch=1",
        "--set", "min_track_frames=1", "--set", "colour_match=0", "--quiet",
    ]  # fmt: skip
    own: list[str | Path] = [
        *common, "-o", "blue.mp4", "--keep-job", "--guidance", "my_term.py:ColourTerm",
        "--set", "guidance.ColourTerm.colour=[0, 0, 255]", "--set", "guidance.ColourTerm.scale=10",
    ]  # fmt: skip
    assert run(capsys, *common, "-o", "plain.mp4") == (0, "")
    assert run(capsys, *own) == (0, "")

    pictures = []
    for name in ("plain.mp4", "blue.mp4"):
        (frame,) = open_reader(probe(tmp_path / name), "pyav").read(0, 1)
        pictures.append(frame.rgb.astype(float))
    touched = np.abs(pictures[1] - pictures[0]).max(2) > 4
    assert touched.sum() > 300
    blueness = [p[touched, 2].mean() - p[touched, :2].mean() for p in pictures]
    assert blueness[1] > blueness[0] + 5, blueness

    record = json.loads((tmp_path / "blue.mp4.json").read_text(encoding="utf-8"))
    (entry,) = [t for t in record["settings"]["guidance"] if "ColourTerm" in t["term"]]
    assert entry["term"] == "my_term.py:ColourTerm" and entry["colour"] == [0, 0, 255]
    assert entry["scale"] == 10
    assert entry["sha256"] == hashlib.sha256(mine.read_bytes()).hexdigest()

    mine.write_text(mine.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    code, said = run(capsys, *own, "--overwrite")
    assert code == 8 and "ColourTerm.sha256" in said
    code, said = run(capsys, *common, "--guidance", "none.py:ColourTerm", "-o", "none.mp4")
    assert code == 2 and "none.py" in said
    assert not list(tmp_path.glob("none.mp4*")) and not (tmp_path / "__pycache__").exists()
