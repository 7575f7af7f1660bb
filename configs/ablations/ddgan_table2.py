"""Denoising diffusion GAN, table 2: in how many steps a picture is drawn.

Xiao et al. 2022 (arXiv:2112.07804), FID on CIFAR-10: one step 14.6, four 3.75; two
4.08 and eight 4.36 are from memory. Their generator without latents, 20.6, is not here.

Variants: see `configs/ablations/__init__.py`.
"""

from ml_collections import ConfigDict

from configs import ablations
from configs.gan import ddgan

ROWS = {f"steps_{t}": {"noise.timesteps": t} for t in (1, 2, 4, 8)}
FID = {"steps_1": 14.6, "steps_2": 4.08, "steps_4": 3.75, "steps_8": 4.36}


def get_config(variant: str = "") -> ConfigDict:
  """The table at the scale of a variant."""
  ablations.check(variant)
  c = ablations.own(ddgan, variant, steps=1000)
  if variant == "mini":
    c.data.size, c.data.batch_size = 16, 32
    c.gan.widths, c.model.widths = (16, 32, 64), (32, 64)
  source = (
    "Denoising diffusion GANs (Xiao et al. 2022), table 2, 4.08 and 4.36 from memory"
  )
  return ablations.table(c, ROWS, source, {"fd": FID})
