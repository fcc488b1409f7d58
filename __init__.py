"""ldvid: video face swap by guided latent diffusion (LDFaceNet, arXiv 2408.02078)."""

import os

__version__ = "0.1.0"

# Unless told not to, MKL may round by where in memory its operands lie. It reads this at its first call.
os.environ.setdefault("MKL_CBWR", "AUTO")
