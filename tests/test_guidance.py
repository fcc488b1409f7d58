"""The guidance terms of ours beyond the paper: soft landmarks, and a second identity crop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from ldvid.configs import GuidanceTerm
from ldvid.errors import SettingsError
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import Detector
from ldvid.stages.records import SourceFace
from ldvid.stages.swap.face_parser import ParseDistance, Probabilities
from ldvid.stages.swap.features import feature_points
from ldvid.stages.swap.geometry import PARTS, SoftLandmarks, Windows
from ldvid.stages.swap.guidance import (
    TERMS,
    Context,
    Scheduled,
    Segmentation,
    SourcePicture,
    Term,
    arcface_theta,
    arcface_view,
    build_terms,
    parse_once,
)
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.pack import Pack
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
        picture = SourcePicture(to_tensor(faces[source].image[None], CPU), faces[source].landmarks[None])
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
    assert openness[1] < 0.9 * openness[0], "the second frame's eyes are closed"


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
        assert eyes[1] < 0.8 * eyes[0], eyes
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
    parse = torch.zeros(2, len(networks.manifest.parser.classes), 256, 256)
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
    picture = SourcePicture(to_tensor(faces[0].image[None], CPU), faces[0].landmarks[None])
    first = picture.embedding(networks, 1.25)
    assert first.shape == (1, 640) and abs(float(first.norm()) - 1) < 1e-5
    assert picture.embedding(networks, 1.25) is first
    # The mean with the mirror image, so that mirroring the view changes nothing.
    theta = arcface_theta(faces[0].landmarks[None], networks.identity_template(), 256, 112)
    with torch.no_grad():
        view = arcface_view(picture.image, zoomed(theta, 1.25, networks.identity_template(), 112), 112)
        both = networks.embed_aligned(view) + networks.embed_aligned(view.flip(3))
    torch.testing.assert_close(first, torch.nn.functional.normalize(both, dim=1), atol=1e-4, rtol=0)
    assert not torch.allclose(picture.embedding(networks, 0.8), first, atol=1e-2)


def test_terms_share_one_parse(
    networks: Networks, frames: tuple[Tensor, np.ndarray[Any, Any]], at: Callable[..., Context]
) -> None:
    from ldvid.stages.swap.guidance import guidance_loss

    calls = []

    class Counting(Networks):
        def parse(self, image: Tensor, size: int | None = None) -> Tensor:
            calls.append(1)
            return super().parse(image)

    counting = Counting(**{f.name: getattr(networks, f.name) for f in fields(networks) if f.init})
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


def test_segmentation_weights_name_classes_or_parts(
    networks: Networks, frames: tuple[Tensor, np.ndarray[Any, Any]], at: Callable[..., Context]
) -> None:
    parser = networks.manifest.parser.model_copy(update={"parts": {"features": ("nose", "mouth")}})
    grouped = replace(networks, manifest=networks.manifest.model_copy(update={"parser": parser}))
    context = replace(at(*frames), networks=grouped)

    def loss(**weights: float) -> Tensor:
        term = GuidanceTerm(term="segmentation", weights=weights)  # type: ignore[call-arg]
        with torch.no_grad():
            return build_terms([term])[0].term.loss(frames[0].flip(0), context)

    assert torch.equal(loss(features=3.0), loss(nose=3.0, mouth=3.0))
    assert (loss(features=3.0) > loss() * 1.001).all()
    with pytest.raises(SettingsError, match="knows no part ear; there are features, background"):
        loss(ear=2.0)


@pytest.mark.parametrize("weights", [None, {"lips": 2.0, "skin": 0.5}])
def test_the_distance_of_parses_is_the_same_in_one_module(
    weights: dict[str, float] | None,
    networks: Networks,
    frames: tuple[Tensor, np.ndarray[Any, Any]],
    at: Callable[[Tensor, np.ndarray[Any, Any], int], Context],
) -> None:
    """As a compiler has it, for a single term that looks at the parse: values and gradients."""
    picture, points = frames
    term, context = Segmentation(weights), at(picture, points, 0)
    module = ParseDistance(cast(Probabilities, networks.probabilities))
    asked: list[bool] = []
    module.register_forward_hook(lambda *_: asked.append(True))
    whole = replace(networks, parser=networks.parser)
    whole.parse_distance = module
    for net, once, used in ((networks, True, 0), (whole, False, 0), (whole, True, 1)):
        x = (picture * 0.9 + 0.05).requires_grad_(True)
        loss = term.loss(x, replace(context, networks=net, parse_once=once))
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert len(asked) == used
        if net is networks:
            wanted = loss.detach(), gradient
        torch.testing.assert_close((loss.detach(), gradient), wanted, rtol=1e-5, atol=1e-7)
    seen = replace(context, networks=whole, parse_once=True)
    x = picture.clone()
    seen.parse(x)
    term.loss(x, seen)
    assert len(asked) == 1, "what was parsed already is not parsed again"


def test_who_looks_at_the_parse_alone() -> None:
    def terms(*names: str) -> list[Scheduled]:
        return [Scheduled(name, TERMS[name](), 1.0, ()) for name in names]

    assert parse_once(terms()) and parse_once(terms("identity", "segmentation", "identity_crop"))
    assert not parse_once(terms("segmentation", "geometry"))
    assert not parse_once([*terms("segmentation"), Scheduled("mine", cast(Term, object()), 1.0, ())])
