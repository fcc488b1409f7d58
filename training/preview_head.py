"""Fits the preview head of a tiny autoencoder: half the resolution for a quarter of the cost.

    python training/preview_head.py FACES… --pack packs/starter --count 190

Guidance needs a picture that the identity network and the parser can read, not the last octave of
detail. The decoder's features after its first block at half resolution already determine that
picture linearly: one 3×3 convolution, fitted in closed form (least squares) to the 2×2 mean of the
full decoder's output, on latents of photographs, half of them disturbed as early x̂ are.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from ldvid.stages.decode import read_picture
from ldvid.stages.swap.autoencoder import PREVIEW_LAYERS, TinyAutoencoder
from safetensors.torch import save_file
from torch import Tensor

DISTURBANCE = 0.15  # of the latent's own standard deviation


def pictures(folders: list[Path], count: int) -> list[Path]:
    """``count`` files, spread over the folders by the hash of their names."""
    suffixes = {".jpg", ".png", ".webp"}
    files = [f for folder in folders for f in folder.rglob("*") if f.suffix.lower() in suffixes]
    return sorted(files, key=lambda f: hashlib.sha256(f.name.encode()).digest())[:count]


@torch.no_grad()
def fit(model: TinyAutoencoder, files: list[Path], held_out: int) -> tuple[Tensor, Tensor, list[float]]:
    """Weight (3, 64, 3, 3), bias (3,), and the PSNR in dB on each held-out picture."""
    generator = torch.Generator().manual_seed(0)
    gram, right = torch.zeros(577, 577, dtype=torch.float64), torch.zeros(577, 3, dtype=torch.float64)
    tests: list[tuple[Tensor, Tensor]] = []
    for index, file in enumerate(files):
        image = (
            torch.from_numpy(np.ascontiguousarray(read_picture(file))).permute(2, 0, 1)[None].float() / 255
        )
        latent = model.encode(image)
        if index % 2:
            latent = latent + DISTURBANCE * latent.std() * torch.randn(latent.shape, generator=generator)
        wanted = F.avg_pool2d(model.decode(latent), 2)[0].flatten(1).T.double()
        patches = F.unfold(model.decoder[:PREVIEW_LAYERS](latent), 3, padding=1)[0].T.double()
        design = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], 1)
        if index < held_out:
            tests.append((design, wanted))
            continue
        gram += design.T @ design
        right += design.T @ wanted
    solution = torch.linalg.solve(gram + 1e-6 * gram.diagonal().mean() * torch.eye(577), right)
    psnr = [float(-10 * torch.log10(((d @ solution - w) ** 2).mean())) for d, w in tests]
    return solution[:-1].T.reshape(3, 64, 3, 3).float(), solution[-1].float(), psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", nargs="+", type=Path, help="folders of aligned 256×256 crops")
    parser.add_argument("--pack", type=Path, default=Path("packs/starter"))
    parser.add_argument("--count", type=int, default=190)
    parser.add_argument("--held-out", type=int, default=20)
    args = parser.parse_args()
    model = TinyAutoencoder.load(
        args.pack / "taef2_encoder.safetensors", args.pack / "taef2_decoder.safetensors", 32
    )
    weight, bias, psnr = fit(model, pictures(args.faces, args.count + args.held_out), args.held_out)
    target = args.pack / "taef2_preview.safetensors"
    save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: PSNR {np.mean(psnr):.2f} dB (worst {min(psnr):.2f}) on {len(psnr)} held-out pictures")  # noqa: T201
    print(f"sha256 {digest}")  # noqa: T201


if __name__ == "__main__":
    main()
