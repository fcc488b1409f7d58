"""``python -m ldvid.training STAGE --config training/config.toml …``: see ``training/README.md``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from ..errors import LdvidError

STAGES = {
    "prepare": "photographs → aligned, labelled shards",
    "autoencoder": "the compact autoencoder",
    "unet": "the diffusion model",
    "parser": "the face parser",
    "decoder": "the small decoder that guidance looks through",
    "evaluate": "validation loss by noise level, and unconditional samples",
    "export": "int8 and fp16 files and the manifest of a pack",
}


def main() -> int:
    """Parse, run one stage; an error of ours is one line on stderr and exit code 1, Ctrl-C 130."""
    parser = argparse.ArgumentParser(prog="python -m ldvid.training", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, text in STAGES.items():
        sub = stages.add_parser(name, help=text, description=text)
        if name == chosen:  # the others' imports take seconds
            module = import_module(f".{name}", __package__)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args()
    try:
        args.run(args)
    except LdvidError as error:
        sys.stderr.write(f"training: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("training: stopped; --resume goes on from what was saved last\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
