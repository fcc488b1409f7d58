"""Stage ``export``: finished trainings → a pack's folder, with its manifest and every file's SHA-256.

    python -m ldvid.training export --unet RUN --autoencoder RUN --decoder RUN --parser RUN --out PACK

What is not given is taken from the pack that it is based on (``--pack``, the embedded one). The folder is
a pack at once: ``ldvid swap … --pack PACK``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputExistsError, PackError, SettingsError
from ..stages.swap.manifest import read_manifest
from ..stages.swap.pack import Pack, hash_file
from .bisenet import MEAN, STD, load_trained
from .latents import base_pack
from .log import say
from .quantise import save_quantised
from .shards import CLASSES
from .unet import load_average
from .unet_trainer import UNetConfig

DESCRIPTION = "46 M UNet told identities, two identity networks, compact latents, 256 px crops"
LICENCE = "non-commercial research"
SOURCE = "trained for ldvid on CelebA-HQ and generated faces (training/README.md)"
PARTS = {
    "brows": ["right_brow", "left_brow"],
    "eyes": ["right_eye", "left_eye"],
    "lips": ["upper_lip", "lower_lip"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the stage."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack; must not exist")
    parser.add_argument("--pack", default="packs/starter", help="folder of the pack it is based on")
    parser.add_argument("--name", default="starter")
    parser.add_argument("--version", default="2")
    parser.add_argument("--description", default=DESCRIPTION)
    parser.add_argument("--unet", type=Path, help="run of the stage unet")
    parser.add_argument("--autoencoder", type=Path, help="run of the stage autoencoder")
    parser.add_argument("--decoder", type=Path, help="run of the stage decoder")
    parser.add_argument("--parser", type=Path, help="run of the stage parser")
    parser.add_argument("--guidance-size", type=int, default=128, help="at which guidance parses")


class Draft:
    """A pack in the making: the manifest's values, and files already in the folder."""

    def __init__(self, base: Pack, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.values: dict[str, Any] = base.manifest.model_dump(mode="json", exclude_none=True)
        self.files: dict[str, dict[str, str]] = {}

    def add(self, file: str, source: str = SOURCE, licence: str = LICENCE) -> str:
        """List a file that lies in the folder; returns its name."""
        self.files[file] = {"sha256": hash_file(self.folder / file), "source": source, "licence": licence}
        return file

    def keep(self, *files: str | None) -> None:
        """Take files over from the base pack as they are."""
        for file in files:
            if file is not None:
                shutil.copyfile(self.base.path(file), self.folder / file)
                entry = self.base.manifest.files[file]
                self.add(file, entry.source, entry.licence)
                if self.files[file]["sha256"] != entry.sha256:
                    raise PackError(f"{self.base.path(file)}: is not the file that its manifest names")

    def write(self) -> None:
        """``pack.toml``, last of all: without it the folder is no pack."""
        self.values.pop("files", None)  # last: hashes are the least of what one reads a manifest for
        self.values["files"] = self.files
        part = self.folder / "pack.toml.part"
        head = "# Written by training/export.py. See README.md beside this file for the model card.\n"
        part.write_text(head + to_toml(self.values), encoding="utf-8")
        part.replace(self.folder / "pack.toml")
        read_manifest(self.folder)


def to_toml(table: dict[str, Any], prefix: str = "") -> str:
    """Tables of scalars, lists and tables: JSON's scalars and lists of scalars are TOML's too."""
    plain = [
        f"{_key(k)} = {json.dumps(v, ensure_ascii=False)}"
        for k, v in table.items()
        if not isinstance(v, dict)
    ]
    parts = ["\n".join(plain)] if plain else []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            name = f"{prefix}.{_key(key)}" if prefix else _key(key)
            body = to_toml(value, name)
            heading = "" if all(isinstance(v, dict) for v in value.values()) else f"[{name}]\n"
            parts.append(heading + body.rstrip("\n"))
    return "\n\n".join(p for p in parts if p) + "\n"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else json.dumps(name, ensure_ascii=False)


def add_unet(draft: Draft, run: Path, channels: int) -> None:
    """The averaged UNet as int8, its noise levels, and the latents' mean and deviation.

    Raises:
        SettingsError: it was trained on latents of other channels than the pack's autoencoder makes.
    """
    network, facts = load_average(run, "cpu")
    config = UNetConfig.model_validate(facts["config"])
    has = facts["arguments"]["in_channels"]
    if has != channels:
        raise SettingsError(f"--unet {run}: trained on {has} channels, the autoencoder makes {channels}")
    state = dict(network.state_dict())
    state |= {k: torch.tensor(facts[k]) for k in ("latent_mean", "latent_std")}
    save_quantised(state, draft.folder / "unet.int8.safetensors")
    draft.values["unet"] = {
        "kind": "file",
        "file": draft.add("unet.int8.safetensors"),
        "arguments": facts["arguments"],
        "condition": "identity",
    }
    schedule = {
        "timesteps": config.timesteps, "beta_schedule": config.beta_schedule, "prediction": config.prediction,
        "beta_start": config.beta_start, "beta_end": config.beta_end, "shift": config.shift,
    }  # fmt: skip
    draft.values["schedule"] = {k: v for k, v in schedule.items() if v is not None}


def add_autoencoder(draft: Draft, run: Path, decoder: Path | None) -> int:
    """The compact autoencoder and its guidance decoder; returns its channels."""
    channels = int(json.loads((run / "report.json").read_text(encoding="utf-8"))["latent_channels"])
    entry: dict[str, Any] = {"kind": "compact", "latent_channels": channels, "downscale": 8}
    origin = "madebyollin/taesd (taef2, MIT), tuned for ldvid on CelebA-HQ and generated faces"
    for half in ("encoder", "decoder"):
        shutil.copyfile(run / f"{half}.safetensors", draft.folder / f"{half}.safetensors")
        entry[half] = draft.add(f"{half}.safetensors", origin)
    if decoder is not None:
        shutil.copyfile(decoder / "guidance.safetensors", draft.folder / "guidance.safetensors")
        entry["guidance"] = draft.add("guidance.safetensors")
    draft.values["autoencoder"] = entry
    return channels


def add_parser(draft: Draft, run: Path, guidance_size: int) -> None:
    """The averaged parser as int8; running statistics of its norms stay as they are."""
    save_quantised(load_trained(run).state_dict(), draft.folder / "bisenet.int8.safetensors")
    draft.values["parser"] = {
        "kind": "bisenet",
        "file": draft.add("bisenet.int8.safetensors", f"{SOURCE}; architecture of facexlib"),
        "size": 256,
        "guidance_size": guidance_size,
        "classes": list(CLASSES),
        "face": [c for c in CLASSES if c not in ("background", "hair")],
        "mean": list(MEAN),
        "std": list(STD),
        "parts": PARTS,
    }


def run(args: argparse.Namespace) -> None:
    """The stage."""
    if args.out.exists():
        raise OutputExistsError(f"--out {args.out}: exists already; name another folder")
    if args.decoder is not None and args.autoencoder is None:
        raise SettingsError("--decoder: belongs to a compact autoencoder; give --autoencoder as well")
    base = base_pack(args.pack)
    part = args.out.with_name(f"{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fill(Draft(base, part), args)
    part.rename(args.out)
    sizes = [p.stat().st_size / 1e6 for p in args.out.iterdir()]
    say(f"{args.out}: {sum(sizes):.1f} MB, the largest file {max(sizes):.1f} MB")


def fill(draft: Draft, args: argparse.Namespace) -> None:
    """Everything of the pack into the draft's folder."""
    old = draft.base.manifest
    draft.values |= {"name": args.name, "version": args.version, "description": args.description}
    channels = old.autoencoder.latent_channels
    if args.autoencoder is not None:
        channels = add_autoencoder(draft, args.autoencoder, args.decoder)
    else:
        kept = draft.values["autoencoder"]
        draft.keep(*(kept.get(k) for k in ("encoder", "decoder", "preview", "guidance")))
    if args.unet is not None:
        add_unet(draft, args.unet, channels)
    else:
        draft.keep(draft.values["unet"]["file"])
    if args.parser is not None:
        add_parser(draft, args.parser, args.guidance_size)
    else:
        draft.keep(old.parser.file)
    second = old.identity.second
    draft.keep(old.identity.file, second.file if second else None, old.detector.file)
    draft.write()
