"""ldvid: video face swap by guided latent diffusion (LDFaceNet, arXiv 2408.02078)."""

__version__ = "0.1.0"
