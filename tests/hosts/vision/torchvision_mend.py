"""See conftest.py; a module of its own, so that scripts in other processes can use it."""

import sys


def nms(boxes, scores, iou_threshold):
    """(K,) indices of the boxes (N, 4; x1, y1, x2, y2) that no better one overlaps too much."""
    import torch

    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        corner = torch.maximum(boxes[left, :2], boxes[best, :2])
        opposite = torch.minimum(boxes[left, 2:], boxes[best, 2:])
        overlap = (opposite - corner).clamp(min=0).prod(1)
        left = left[overlap / (areas[left] + areas[best] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)


def mend(torch):
    """Define the operators that torchvision looks for when it is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CPU")
    mend.library = library  # it lasts as long as this does
    import torchvision

    torchvision.ops.boxes._assert_has_ops = lambda: None
