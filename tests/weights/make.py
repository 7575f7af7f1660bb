"""Writes the two files beside it; needs PyTorch: python tests/weights/make.py."""

from pathlib import Path

import torch

# A module's own state dict, a parameter, views of one storage, and other dtypes.
state = torch.nn.BatchNorm1d(2).state_dict()
base = torch.arange(6.0).reshape(2, 3)
state["parameter"] = torch.nn.Parameter(base)
state["transposed"] = base.T
state["column"] = base[:, 1]
state["bfloat16"] = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
state["bool"] = torch.tensor([True, False])
state["empty"] = torch.zeros(0, 3)
for name, is_zip in (("zip", True), ("legacy", False)):
  path = Path(__file__).with_name(f"{name}.pth")
  torch.save(state, path, _use_new_zipfile_serialization=is_zip)
