"""ldvid: video face swap by guided latent diffusion (LDFaceNet, arXiv 2408.02078)."""

import os

__version__ = "0.1.0"

# Libraries of Intel may round by where in memory their operands lie, or how threads share a picture: MKL
# unless it is told not to, IPP (with which OpenCV resizes) always. Without IPP, OpenCV would warn of that.
# All three are read when the libraries are first called.
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("OPENCV_IPP", "disabled")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
