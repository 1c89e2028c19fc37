"""A torchvision wheel that was built for another torch does not import; this mends that.

Its C++ operators are missing then, which nothing here needs but `nms`.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    from tests.hosts.vision.torchvision_mend import mend

    mend(torch)
