"""Stage ``prepare``: folders of photographs → aligned, labelled shards.

    python -m ldvid.training prepare PHOTOS… --out SHARDS [--teacher face_parse.tflite]
    python -m ldvid.training prepare CROPS… --aligned --out SHARDS --teacher face_parse.tflite

Faces are found by the pack's own detector and warped to its template, as a swap does. Pictures are
gone through in the order of a hash of their names, so that any prefix of the shards is a fair sample.
The work is done in ``SHARDS.unfinished``; a run that is stopped goes on from its last whole piece.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..errors import FaceError, InputError, OutputError, OutputExistsError, SettingsError
from ..stages.detect import open_detector
from ..stages.folder import SUFFIXES
from ..stages.swap.pack import Pack, open_pack
from .config import Section, read_section
from .log import say
from .prepare_faces import Dropped, Maker, Photo, Rules, safe_name
from .prepare_report import FACTS, report
from .shards import SIDE, Sample, ShardWriter, pieces, stored
from .teacher import Teacher

SETTINGS = "settings.json"  # of a run that is not finished
EVERY = 10.0  # seconds between lines


class PrepareConfig(Section):
    """The section ``[prepare]``."""

    pack: str = "starter"
    threshold: float = Field(default=0.6, gt=0, lt=1)  # of the detector's score
    faces: Literal["largest", "all"] = "largest"
    min_face: int = Field(default=100, ge=1)  # px of the photo; the template shows a box of about 155
    max_outside: float = Field(default=0.5, ge=0, lt=1)
    quality: int = Field(default=95, ge=1, le=100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage's flags."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="searched with what is in them"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the shards; must not exist")
    parser.add_argument("--config", type=Path, help="TOML file with a section [prepare]")
    parser.add_argument("--aligned", action="store_true", help="pictures are crops on the template already")
    parser.add_argument("--teacher", type=Path, help="face_parse.tflite; without it there are no labels")
    parser.add_argument("--faces", choices=("largest", "all"), help="of a photo with several (largest)")
    parser.add_argument("--min-face", type=int, help="smaller faces are dropped, pixels of the photo (100)")
    parser.add_argument(
        "--set", help="name of the set; else a file's name before its first '-', else its folder's"
    )
    parser.add_argument("--workers", type=int, default=1, help="threads (1)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there")


def run(args: argparse.Namespace) -> None:
    """Prepare the pictures, print a report, leave it beside the shards.

    Raises:
        InputError: a folder or the teacher can't be read, or no pictures are there.
        FaceError: not one usable face.
        OutputExistsError: something is in the way.
        SettingsError: two pictures that would share a name, or an option out of its range.
    """
    config = read_section(args.config, "prepare", PrepareConfig) if args.config else PrepareConfig()
    given = {k: v for k in ("faces", "min_face") if (v := getattr(args, k)) is not None}
    if args.workers < 1 or given.get("min_face", 1) < 1:
        raise SettingsError("--workers and --min-face are at least 1")
    config = config.model_copy(update=given)
    _check_out(args.out, args.overwrite)
    photos = list_photos(args.folders, args.set)
    pack = open_pack(config.pack)
    teacher = Teacher.open(args.teacher) if args.teacher else None
    settings = _settings(config, pack, photos, args.aligned, args.teacher)
    work = args.out.with_name(args.out.name + ".unfinished")
    done = _resume(work, settings, args.overwrite)
    template = pack.manifest.template_points() * (SIDE / pack.manifest.crop_size)
    rules = Rules(template, args.aligned, config.faces, config.min_face, config.max_outside, config.quality)
    here = threading.local()

    def make(photo: Photo) -> list[Sample | Dropped]:
        if not hasattr(here, "maker"):
            here.maker = Maker(rules, open_detector(pack, config.threshold), teacher)
        made: list[Sample | Dropped] = here.maker(photo)
        return made

    dropped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    kept = len(done)
    try:
        with ShardWriter(work) as writer, ThreadPoolExecutor(args.workers) as pool:
            for made in _in_order(pool, make, [p for p in photos if p.name not in done], args.workers):
                for item in made:
                    if isinstance(item, Dropped):
                        dropped[item.why] += 1
                        examples.setdefault(item.why, str(item.path))
                    elif item.name not in done:
                        writer.write(item)
                        kept += 1
    except OSError as error:
        raise OutputError(f"--out {args.out}: {error.strerror or error}; run again to go on") from error
    if not kept:
        shutil.rmtree(work)
        why = "; ".join(f"{n} × {w}" for w, n in dropped.most_common(3))
        raise FaceError(f"no usable face in {len(photos)} pictures ({why}); see --min-face and --aligned")
    _put(work, args.out, report(work, settings, dropped, examples))
    say(f"{args.out}: {len(pieces(args.out))} pieces")


def list_photos(folders: list[Path], set_name: str | None) -> list[Photo]:
    """Every picture under the folders, in the order of the SHA-256 of its sample's name.

    A file ``PREFIX-REST`` belongs to the set PREFIX (letters and digits, beginning with a letter) and
    keeps its name; any other belongs to its folder's set, whose name is put before its own.
    """
    photos: dict[str, Photo] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            if (
                path.suffix.lower() not in SUFFIXES
                or any(p.startswith(".") for p in parts)
                or not path.is_file()
            ):
                continue
            stem = safe_name("-".join([*parts[:-1], path.stem]))
            prefix = stem.partition("-")[0]
            prefixed = set_name is None and "-" in stem and prefix.isalnum() and prefix[0].isalpha()
            group = prefix if prefixed else safe_name(set_name or folder.resolve().name)
            photo = Photo(path, stem if prefixed else f"{group}-{stem}", group)
            if photo.name in photos:
                raise SettingsError(
                    f"{photos[photo.name].path} and {path} would both be {photo.name}: "
                    "rename one, or prepare the folders apart with --set"
                )
            photos[photo.name] = photo
    if not photos:
        raise InputError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, folders))}")
    return sorted(photos.values(), key=lambda p: hashlib.sha256(p.name.encode()).digest())


def _in_order(
    pool: ThreadPoolExecutor, make: Any, photos: list[Photo], workers: int
) -> Iterator[list[Sample | Dropped]]:
    """Results in the photos' order, a few ahead of the writer; says how far it is."""
    ahead: deque[Future[list[Sample | Dropped]]] = deque()
    began = said = time.monotonic()
    for index in range(len(photos) + 4 * workers):
        if index < len(photos):
            ahead.append(pool.submit(make, photos[index]))
        if ahead and (len(ahead) > 4 * workers or index >= len(photos)):
            yield ahead.popleft().result()
        finished, now = index + 1 - len(ahead), time.monotonic()
        if now - said >= EVERY and finished:
            said = now
            left = (len(photos) - finished) * (now - began) / finished
            say(f"{finished} of {len(photos)} pictures  {finished / (now - began):.1f}/s  {left:.0f} s left")


def _settings(
    config: PrepareConfig, pack: Pack, photos: list[Photo], aligned: bool, teacher: Path | None
) -> dict[str, Any]:
    """What the samples depend on; a run is only resumed by one with the same."""
    listing = "\n".join(f"{p.name} {p.path.stat().st_size}" for p in photos)
    try:
        parser = hashlib.sha256(teacher.read_bytes()).hexdigest() if teacher else None
    except OSError as error:
        raise InputError(f"--teacher {teacher}: {error.strerror}") from error
    return {
        **config.model_dump(),
        "pack_version": pack.manifest.version,
        "template": pack.manifest.template_points().tolist(),
        "aligned": aligned,
        "teacher_sha256": parser,
        "pictures": len(photos),
        "pictures_sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse before any work; only folders of shards are ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(
            f"--out {out} exists; give another folder, or --overwrite to replace the shards"
        )
    _only_shards(out, f"--out {out}")


def _only_shards(folder: Path, called: Path | str) -> None:
    """OutputExistsError for what this stage never wrote: it is going to be removed."""
    ours = {FACTS, SETTINGS, *(p.name for p in pieces(folder)), *(p.name for p in folder.glob("*.tar.part"))}
    strange = [p.name for p in folder.iterdir() if p.name not in ours] if folder.is_dir() else [folder.name]
    if strange:
        raise OutputExistsError(f"{called} holds other things than shards ({strange[0]}): left alone")


def _resume(work: Path, settings: dict[str, Any], overwrite: bool) -> set[str]:
    """Names already in whole pieces of an unfinished run of the same settings."""
    marker = work / SETTINGS
    try:
        if work.exists() and marker.exists() and json.loads(marker.read_text()) == settings:
            done = {name for name, _ in stored(work)}
            say(f"going on after {len(done)} faces of {work}")
            return done
        if work.exists():
            _only_shards(work, work)
            if pieces(work) and not overwrite:
                raise OutputExistsError(
                    f"{work} is left of a run with other settings or pictures: --overwrite starts anew"
                )
            shutil.rmtree(work)
        work.mkdir(parents=True)
        marker.write_text(json.dumps(settings))
    except (OSError, ValueError) as error:
        raise OutputError(f"{work}: {error}") from error
    return set()


def _put(work: Path, out: Path, facts: dict[str, Any]) -> None:
    """The finished folder under its own name; what it replaces goes last."""
    old = out.with_name(out.name + ".replaced")
    try:
        (work / FACTS).write_text(json.dumps(facts, indent=1))
        (work / SETTINGS).unlink()
        if out.exists():
            out.replace(old)
        work.replace(out)
    except OSError as error:
        raise OutputError(f"--out {out}: {error}; the shards are whole in {work}") from error
    if old.exists():
        shutil.rmtree(old)
