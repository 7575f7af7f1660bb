"""PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517).

The default is the paper's model of CIFAR-10, without classes: five blocks at each of
three resolutions on each way, 160 channels, ten logistics, dropout 0.5: 2.92 bits a
dimension (table 1). Settings of training are those of the authors' code: Adam at 1e-3,
EMA 0.9995. Differences, whose cost is not measured: weights are not normalized nor
started from data, see `nets/pixelcnn.py`; batches of 64, there 16 on each of 8 devices;
gradients are clipped; and the rate is constant, where theirs falls by 0.999995 a step.

Variants:
  :fashion_mnist  class to 32x32 grey pictures, a small network. A sample runs it 1,024
                  times, so ten take as long as half of the training.
  :openmoji32     captions to 32x32 OpenMoji, likewise.
  :tiny           seconds; what tests use.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("fashion_mnist", "openmoji32", "tiny")


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant."""
  c = base.get_config()
  c.family = "autoregressive.pixelcnn_pp"
  c.autoregressive = base.autoregressive()
  c.data.name, c.data.batch_size = "cifar10", 64
  c.text.encoder, c.text.drop = "none", 0.0
  c.model.widths, c.model.blocks, c.model.dropout = (160, 160, 160), 5, 0.5
  c.optim.learning_rate, c.optim.warmup_steps = 1e-3, 0
  c.optim.ema, c.optim.ema_decay = "constant", 0.9995
  c.train.steps = 500_000
  c.sample.guidance_scale, c.sample.edit, c.sample.strength = 1.0, "complete", 0.5
  base.on_cpu(c, variant, VARIANTS, small, lambda c: None)
  return c


def small(c: ConfigDict) -> None:
  """A small network and a short training, for CPUs."""
  c.data.size, c.data.batch_size, c.data.eval_split = 32, 16, "test"
  c.model.widths, c.model.blocks, c.model.dropout = (32, 32), 2, 0.0
  c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule = 2e-3, 50, "cosine"
  c.optim.ema, c.optim.ema_decay = "warmup", 0.99
  c.train.steps = 300
  c.train.sample_every, c.train.eval_every, c.train.checkpoint_every = 0, 0, 250
  c.sample.num_images, c.eval.num_images = 10, 1000
