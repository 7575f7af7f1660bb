"""Makes torchvision importable beside a PyTorch for the CPU; a random Inception."""

import numpy as np
import torch

# The operators in torchvision's wheel need CUDA. No network here uses them, and
# without them torchvision only wants two of their names.
try:
  import torchvision
except RuntimeError:
  operators = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
  import torchvision


def random_inception(pictures: np.ndarray) -> dict[str, torch.Tensor]:
  """Random weights for FID's Inception, its batch norms fitted to pictures.

  So the features vary from picture to picture, as real ones do. uint8 [n, h, w, 3].
  """
  torch.manual_seed(0)
  net = torchvision.models.inception_v3(
    num_classes=1008, aux_logits=False, init_weights=False
  )
  for module in net.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.momentum = None  # the plain mean of what is seen
  x = torch.tensor(pictures).permute(0, 3, 1, 2).float()
  x = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear")
  with torch.no_grad():
    net.train()((x - 128) / 128)
    net.fc.weight *= 30  # sure enough of the classes for an Inception Score
  return net.state_dict()
