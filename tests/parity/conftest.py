"""Makes torchvision importable beside a PyTorch for the CPU."""

import torch

# The operators in torchvision's wheel need CUDA. No network here uses them, and
# without them torchvision only wants two of their names.
try:
  import torchvision
except RuntimeError:
  operators = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
  import torchvision  # noqa: F401
