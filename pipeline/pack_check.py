"""Whether the parts of a pack fit together: a few measurements on one portrait.

Right hashes say that the files are the ones the manifest names. They don't say that the manifest is right:
a wrong latent scale, β schedule or list of classes loads well and swaps badly. It shows here. What does not
show is a swapped colour order of the identity network: it still knows a face from its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import PackError
from ..stages.align import apply_points, estimate_similarity, warp
from ..stages.decode import read_picture
from ..stages.detect import open_detector
from ..stages.records import U8
from ..stages.swap.networks import Networks, to_tensor
from ..stages.swap.pack import open_pack

LEVELS = (0.2, 0.4)  # of T: where the UNet is asked


@dataclass(frozen=True)
class Check:
    """One measurement; ``ok`` when ``value`` is at least ``needed``."""

    what: str
    value: float
    needed: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        return self.value >= self.needed


def check_pack(name: str, picture: Path, device: str = "auto") -> list[Check]:
    """Load all networks of a pack and measure them on a picture of one face.

    Raises:
        PackError: the pack is incomplete, can't be loaded, or its detector finds no face in the picture.
        InputError: the picture can't be read.
    """
    pack = open_pack(name)
    networks = Networks.load(pack, device)
    rgb = read_picture(picture)
    found = open_detector(pack, 0.3).detect(rgb)
    if not found:
        raise PackError(
            f"pack {name}: its detector finds no face in {picture}; where there is one, the manifest's "
            "[detector] does not fit the file"
        )
    face = found[0]
    manifest = pack.manifest
    matrix = estimate_similarity(face.landmarks, manifest.template_points())
    crop = warp(rgb, matrix, manifest.crop_size)
    points = apply_points(matrix, face.landmarks)
    aligned = warp(
        rgb, estimate_similarity(face.landmarks, networks.identity_template()), manifest.identity.size
    )
    with torch.no_grad():
        return [
            Check("detector: score of the face", face.score, 0.5),
            *_diffusion(networks, to_tensor(crop[None], networks.device)),
            _mirror(networks, aligned),
            *_parser(networks, crop, points),
        ]


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return float(-10 * torch.log10(((a - b).clamp(-1, 1) ** 2).mean().clamp(min=1e-12)))


def _diffusion(networks: Networks, crop: Tensor) -> list[Check]:
    """The autoencoder's reconstruction, and what the UNet makes of its latents with noise on them.

    A UNet gains something with most schedules. One that is told another noise level than there is does
    better when told half or twice as much: that is how a wrong β schedule or latent scale shows.
    """
    latent = networks.encode(crop)
    back = networks.decode(latent).clamp(0, 1)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent.device)

    def noised(t: int) -> tuple[Tensor, Tensor]:
        alpha = networks.alpha_bar[t].to(latent.dtype)
        return alpha, alpha.sqrt() * latent + (1 - alpha).sqrt() * noise

    def error(z: Tensor, t: int) -> float:
        return float(((networks.predict_noise(z, t) - noise) ** 2).mean())

    low, middle = (int(share * len(networks.alpha_bar)) for share in LEVELS)
    alpha, z = noised(low)
    clean = (z - (1 - alpha).sqrt() * networks.predict_noise(z, low)) / alpha.sqrt()
    before = psnr(networks.decode(z / alpha.sqrt()).clamp(0, 1), back)
    after = psnr(networks.decode(clean).clamp(0, 1), back)
    z = noised(middle)[1]
    told_wrong = min(error(z, middle // 2), error(z, 2 * middle))
    return [
        Check("autoencoder: reconstruction", psnr(back, crop), 20, "dB"),
        Check(f"UNet: gain of the clean estimate at t = {low}", after - before, 1, "dB"),
        Check(f"UNet: error when told half or twice t = {middle}", told_wrong / error(z, middle), 1, "×"),
    ]


def _mirror(networks: Networks, aligned: U8) -> Check:
    both = networks.embed(np.stack([aligned, aligned[:, ::-1]]))
    return Check("identity: cosine of the face and its mirror image", float(both[0] @ both[1]), 0.5)


def _parser(networks: Networks, crop: U8, points: np.ndarray) -> list[Check]:
    """Face where the face is, background or hair beside it, and the nose at its tip."""
    entry = networks.manifest.parser
    classes = networks.parse(to_tensor(crop[None], networks.device))[0].argmax(0).cpu().numpy()
    scale = classes.shape[0] / networks.manifest.crop_size
    y, x = np.mgrid[: classes.shape[0], : classes.shape[1]] / scale
    centre, reach = points.mean(0), np.linalg.norm(points[1] - points[0])
    inside = np.hypot(x - centre[0], y - centre[1]) < 0.6 * reach
    face = np.isin(classes, [entry.classes.index(c) for c in entry.face])
    tip = np.hypot(x - points[2, 0], y - points[2, 1]) < 0.1 * reach
    nose = np.isin(classes, entry.indices("nose"))
    return [
        Check("parser: share of face where the template has it", float(face[inside].mean()), 0.8),
        Check("parser: share of nose at its tip", float(nose[tip].mean()), 0.5),
    ]
