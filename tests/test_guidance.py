"""Guidance terms: ours beyond the paper, and those of a user's own file."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ldvid.cli import main
from ldvid.configs import GuidanceTerm, load_settings
from ldvid.errors import SettingsError
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import Detector
from ldvid.stages.records import SourceFace
from ldvid.stages.swap.features import feature_points
from ldvid.stages.swap.geometry import PARTS, SoftLandmarks, Windows
from ldvid.stages.swap.guidance import Context, SourcePicture, Term, arcface_theta, arcface_view, build_terms
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.pack import Pack
from ldvid.stages.swap.sampler import Sampling, guided_swap
from ldvid.stages.swap.views import zoomed
from torch import Tensor

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
MY_TERM = ROOT / "examples/my_term.py"


@pytest.fixture(scope="module")
def frames(
    pack: Pack, detector: Detector, example_clip: Path
) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.float32]]]:
    """Crops of a smile with open eyes and of closed eyes, (2, 3, 256, 256), and their landmarks."""
    from ldvid.stages.align import apply_points, estimate_similarity, warp

    reader = open_reader(probe(example_clip), "pyav")
    pictures, points = [], []
    for index in (0, 47):
        (frame,) = reader.read(index, index + 1)
        found = detector.detect(frame.rgb)[0].landmarks
        matrix = estimate_similarity(found, pack.manifest.template_points())
        pictures.append(warp(frame.rgb, matrix, 256))
        points.append(apply_points(matrix, found))
    return to_tensor(np.stack(pictures), CPU), np.stack(points).astype(np.float32)


@pytest.fixture(scope="module")
def at(
    networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> Callable[[Tensor, np.ndarray[Any, Any], int], Context]:
    """Makes the context of targets with these landmarks, to become one of the portraits."""

    def context(target: Tensor, landmarks: np.ndarray[Any, Any], source: int = 0) -> Context:
        with torch.no_grad():
            parse = networks.parse(target)
        mask = torch.zeros(len(target), 1, 256, 256)
        mask[:, :, 64:232, 56:200] = 1
        theta = arcface_theta(landmarks, networks.identity_template(), 256, 112)
        embedding = torch.from_numpy(faces[source].embedding)[None].expand(len(target), -1)
        picture = SourcePicture(to_tensor(faces[source].image[None], CPU), faces[source].landmarks)
        points = torch.from_numpy(landmarks)
        return Context(networks, embedding, target, parse, mask, theta, points, picture)

    return context


def descend(term: Term, context: Context, start: Tensor, steps: int = 10, rate: float = 0.06) -> Tensor:
    """The picture after following one term's gradient alone, in the latents."""
    net = context.networks
    with torch.no_grad():
        z = net.encode(start)
    z.requires_grad_(True)
    optimiser = torch.optim.Adam([z], rate)
    for _ in range(steps):
        optimiser.zero_grad()
        term.loss(net.decode_preview(z), context).sum().backward()
        optimiser.step()
    with torch.no_grad():
        return net.decode(z).clamp(0, 1)


def soft(net: Networks, picture: Tensor, landmarks: np.ndarray[Any, Any]) -> SoftLandmarks:
    with torch.no_grad():
        return Windows(torch.from_numpy(landmarks), 256, 256).measure(net.parse(picture), net.manifest.parser)


def test_soft_landmarks_lie_on_the_features(
    networks: Networks, frames: tuple[Tensor, np.ndarray[Any, Any]]
) -> None:
    """Where ``feature_points``, which is not differentiable and written otherwise, sees them."""
    picture, points = frames
    gap = float(np.linalg.norm(points[0, 1] - points[0, 0]))
    found = soft(networks, picture, points)
    centre = found.centre[0].numpy() * gap
    with torch.no_grad():
        parse = networks.parse(picture)[0].numpy()
    extents, _ = feature_points(parse, points[0], networks.manifest.parser)
    boxes = extents[5:].reshape(6, 4, 2)  # eyes, brows, mouth, nose: left, right, top, bottom
    for part, box in zip((0, 1, 2, 3, 4), boxes, strict=False):
        middle = np.array([box[:2, 0].mean(), box[2:, 1].mean()])
        assert np.abs(centre[part] - middle).max() < 0.05 * gap, PARTS[part].name
    assert np.abs(centre[0] - points[0, 0]).max() < 0.12 * gap
    openness = found.mass[:, :2].sum(1)
    assert openness[1] < 0.8 * openness[0], "the second frame's eyes are closed"


def test_soft_landmarks_move_with_the_picture_and_not_with_its_size(
    networks: Networks, frames: tuple[Tensor, np.ndarray[Any, Any]]
) -> None:
    points = frames[1][:1]
    gap = float(np.linalg.norm(points[0, 1] - points[0, 0]))
    with torch.no_grad():
        parse = networks.parse(frames[0][:1])
    parser = networks.manifest.parser
    here = Windows(torch.from_numpy(points), 256, 256).measure(parse, parser)
    shift = np.float32([4, -3])
    moved = Windows(torch.from_numpy(points + shift), 256, 256).measure(parse.roll((-3, 4), (2, 3)), parser)
    np.testing.assert_allclose(
        (moved.centre - here.centre)[0].numpy() * gap, np.tile(shift, (7, 1)), atol=0.01
    )
    half = torch.nn.functional.avg_pool2d(parse, 2)
    small = Windows(torch.from_numpy(points), 256, 128).measure(half, parser)
    torch.testing.assert_close(small.centre, here.centre, atol=0.003, rtol=0)
    torch.testing.assert_close(small.mass, here.mass, atol=0.005, rtol=0.03)


def test_geometry_brings_the_targets_expression(
    networks: Networks,
    faces: tuple[SourceFace, SourceFace],
    frames: tuple[Tensor, np.ndarray[Any, Any]],
    at: Callable[..., Context],
) -> None:
    """From another face, following the term alone closes eyes and moves features where the target's are."""
    picture, points = frames
    context = at(picture, points)
    start = to_tensor(np.stack([faces[1].image] * 2), CPU)
    (term,) = build_terms([GuidanceTerm(term="geometry")])
    done = descend(term.term, context, start)
    wanted, before, after = (soft(networks, p, points) for p in (picture, start, done))
    for i in range(2):
        off = [float((s.centre - wanted.centre)[i].norm(dim=1).mean()) for s in (before, after)]
        assert off[1] < 0.7 * off[0], off
        eyes = [float((s.mass - wanted.mass)[i, :2].abs().sum()) for s in (before, after)]
        assert eyes[1] < 0.6 * eyes[0], eyes
        mouth = [float((s.mass - wanted.mass)[i, 5].abs()) for s in (before, after)]
        assert mouth[1] < 0.6 * mouth[0] or mouth[0] < 0.01, mouth


def test_geometry_is_at_rest_on_the_target_and_finite_without_parts(
    networks: Networks, frames: tuple[Tensor, np.ndarray[Any, Any]], at: Callable[..., Context]
) -> None:
    picture, points = frames
    context = at(picture, points)
    (term,) = build_terms([GuidanceTerm(term="geometry")])
    with torch.no_grad():
        assert term.loss(picture, context).max() < 1e-7
    blank = torch.full_like(picture, 0.5)
    for target in (context, at(blank, points)):  # nothing to find in x̂; nothing in the target either
        x = (
            blank + 0.01 * torch.randn(blank.shape, generator=torch.Generator().manual_seed(0))
        ).requires_grad_()
        loss = term.loss(x, target)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert loss.isfinite().all() and gradient.isfinite().all()
    parse = torch.zeros(2, 8, 256, 256)
    parse[:, 0] = 1  # not one pixel of a face, exactly
    empty = Windows(torch.from_numpy(points), 256, 256).measure(
        parse.requires_grad_(), networks.manifest.parser
    )
    (gradient,) = torch.autograd.grad(sum(v.sum() for v in empty), parse)  # type: ignore[arg-type]
    assert gradient.isfinite().all()
    assert float(empty.mass.detach().abs().max()) == 0


def test_geometry_weights_name_parts() -> None:
    with pytest.raises(
        SettingsError, match=r"guidance term geometry: .*no part is named ear; there are right_eye"
    ):
        build_terms([GuidanceTerm(term="geometry", weights={"ear": 1.0})])  # type: ignore[call-arg]


@pytest.mark.parametrize("zoom", [0.8, 1.25])
def test_a_second_crop_brings_the_source(
    networks: Networks, faces: tuple[SourceFace, SourceFace], at: Callable[..., Context], zoom: float
) -> None:
    """Following it alone raises similarity in its own framing, and in ArcFace's, which it does not see."""
    context = at(to_tensor(faces[1].image[None], CPU), faces[1].landmarks[None])
    (term,) = build_terms([GuidanceTerm(term="identity_crop", zoom=zoom)])  # type: ignore[call-arg]
    done = descend(term.term, context, context.target, steps=5)

    def similarity(picture: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            plain = networks.embed_aligned(arcface_view(picture, context.to_arcface, 112))
            return float(1 - term.loss(picture, context)), float((plain * context.source).sum())

    before, after = similarity(context.target), similarity(done)
    assert after[0] > before[0] + 0.3, (before, after)
    assert after[1] > before[1] + 0.15, (before, after)


def test_a_second_crop_is_framed_as_it_says(
    networks: Networks, faces: tuple[SourceFace, SourceFace], at: Callable[..., Context]
) -> None:
    """The source seen as itself is all but itself; zoom 1 is ArcFace's own view; the mouth moves outwards."""
    context = at(to_tensor(faces[0].image[None], CPU), faces[0].landmarks[None])
    for zoom in (0.8, 1.0, 1.25):
        (term,) = build_terms([GuidanceTerm(term="identity_crop", zoom=zoom)])  # type: ignore[call-arg]
        with torch.no_grad():
            assert float(term.loss(context.target, context)) < 0.1, zoom
    template = networks.identity_template()
    torch.testing.assert_close(zoomed(context.to_arcface, 1.0, template, 112), context.to_arcface)
    # A dot on the crop's left mouth corner moves away from the middle of the face by the zoom.
    dot = torch.zeros(1, 1, 256, 256)
    x, y = faces[0].landmarks[4].round().astype(int)
    dot[0, 0, y - 2 : y + 3, x - 2 : x + 3] = 1
    middle = template.mean(0)
    where = []
    for zoom in (1.0, 1.25):
        seen = arcface_view(dot, zoomed(context.to_arcface, zoom, template, 112), 112)[0, 0]
        ys, xs = torch.nonzero(seen > 0.5, as_tuple=True)
        where.append(np.array([float(xs.float().mean()), float(ys.float().mean())]) - middle)
    np.testing.assert_allclose(where[1], 1.25 * where[0], atol=1.0)
    for bad in (0.1, 3):
        with pytest.raises(SettingsError, match="guidance term identity_crop: zoom must lie between"):
            build_terms([GuidanceTerm(term="identity_crop", zoom=bad)])  # type: ignore[call-arg]


def test_a_second_crops_jitter_is_its_own(
    networks: Networks, faces: tuple[SourceFace, SourceFace], at: Callable[..., Context]
) -> None:
    context = at(to_tensor(faces[1].image[None], CPU), faces[1].landmarks[None])
    entries = [GuidanceTerm(term="identity_crop", zoom=1.0, jitter=j) for j in (0.0, 1.0)]  # type: ignore[call-arg]
    entries.append(GuidanceTerm(term="identity", jitter=1.0))  # type: ignore[call-arg]
    plain, moved, identity = build_terms(entries)
    with torch.no_grad():
        values = [float(moved.loss(context.target, replace(context, step=s))) for s in (0, 0, 1)]
        assert values[0] == values[1] != values[2]
        assert abs(values[0] - float(plain.loss(context.target, context))) < 0.3
        assert values[0] != pytest.approx(float(identity.loss(context.target, context)), abs=1e-4)


def test_the_sources_framing_is_computed_once(
    networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    picture = SourcePicture(to_tensor(faces[0].image[None], CPU), faces[0].landmarks)
    first = picture.embedding(networks, 1.25)
    assert first.shape == (512,) and abs(float(first.norm()) - 1) < 1e-5
    assert picture.embedding(networks, 1.25) is first
    # The mean with the mirror image, so that mirroring the view changes nothing.
    theta = arcface_theta(faces[0].landmarks[None], networks.identity_template(), 256, 112)
    with torch.no_grad():
        view = arcface_view(picture.image, zoomed(theta, 1.25, networks.identity_template(), 112), 112)
        both = networks.embed_aligned(view) + networks.embed_aligned(view.flip(3))
    torch.testing.assert_close(first, torch.nn.functional.normalize(both, dim=1)[0], atol=1e-4, rtol=0)
    assert not torch.allclose(picture.embedding(networks, 0.8), first, atol=1e-2)


def test_terms_share_one_parse(
    networks: Networks, frames: tuple[Tensor, np.ndarray[Any, Any]], at: Callable[..., Context]
) -> None:
    from ldvid.stages.swap.guidance import guidance_loss

    calls = []

    class Counting(Networks):
        def parse(self, image: Tensor) -> Tensor:
            calls.append(1)
            return super().parse(image)

    counting = Counting(**{k: getattr(networks, k) for k in networks.__dataclass_fields__})
    context = replace(at(*frames), networks=counting)
    terms = build_terms([GuidanceTerm(term="geometry"), GuidanceTerm(term="segmentation")])
    x = frames[0].flip(0)
    with torch.no_grad():
        together = guidance_loss(terms, x, context, 0.0)
        assert calls == [1]
        apart = (
            terms[0].loss(x, context)
            + replace(context).networks.parse(x).sub(context.target_parse).square().sum(1).mean((1, 2)) * 1000
        )
    torch.testing.assert_close(together, apart)


# A user's own file ---------------------------------------------------------------------------------


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
        "cpu", guidance=["mine.py:Mine"],
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
    tmp_path: Path,
    frames: tuple[Tensor, np.ndarray[Any, Any]],
    at: Callable[..., Context],
    body: str,
    words: list[str],
) -> None:
    """Beside a good term, in the loop itself."""
    text = f"class Mine:\n    strength = 1\n\n    def loss(self, x_hat, context):\n        {body}\n"
    entry = GuidanceTerm(term=f"{write(tmp_path, text)}:Mine")
    terms = build_terms([GuidanceTerm(term="identity"), entry])
    context = at(*frames)
    with torch.no_grad():
        z0 = context.networks.encode(context.target)
    with pytest.raises(SettingsError) as caught:
        guided_swap(context, z0, z0, torch.ones(2, 1, 32, 32), terms, Sampling(1, 0.4, preview=True))
    for word in ["guidance term Mine: ", *words]:
        assert caught.match(word)


def test_the_example_pulls_the_colour(
    frames: tuple[Tensor, np.ndarray[Any, Any]], at: Callable[..., Context]
) -> None:
    """Its value and gradient, by hand; and through the loop the skin goes where it is told."""
    context = at(*frames)
    entry = GuidanceTerm(term=f"{MY_TERM}:ColourTerm", colour=[255, 0, 0], strength=2.0)  # type: ignore[call-arg]
    (red,) = build_terms([entry])
    flat = torch.tensor([0.25, 0.5, 0.75])[None, :, None, None].expand(2, 3, 128, 128)
    assert red.loss(flat, context).tolist() == pytest.approx([2 * (0.75**2 + 0.5**2 + 0.75**2)] * 2)
    (own,) = build_terms([GuidanceTerm(term=f"{MY_TERM}:ColourTerm")])
    assert float(own.loss(context.target, context).max()) < 1e-9
    with torch.no_grad():
        z0 = context.networks.encode(context.target)
    sampling = Sampling(2, 0.4, step_size=0.05, preview=True)
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
        "--set", "guidance.ColourTerm.colour=[0, 0, 255]", "--set", "guidance.ColourTerm.scale=5",
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
    assert entry["term"] == "my_term.py:ColourTerm" and entry["colour"] == [0, 0, 255] and entry["scale"] == 5
    assert entry["sha256"] == hashlib.sha256(mine.read_bytes()).hexdigest()

    mine.write_text(mine.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    code, said = run(capsys, *own, "--overwrite")
    assert code == 8 and "ColourTerm.sha256" in said
    code, said = run(capsys, *common, "--guidance", "none.py:ColourTerm", "-o", "none.mp4")
    assert code == 2 and "none.py" in said
    assert not list(tmp_path.glob("none.mp4*")) and not (tmp_path / "__pycache__").exists()
