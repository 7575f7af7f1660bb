"""The networks of published systems at their own size, for configs to be made of.

Each function sets `c.model` (and what is said besides). tests/test_shapes.py counts
their parameters without making them. What the papers print with one digit, such as
"2B", their own hyperparameters meet no closer than that digit says.
"""

from ml_collections import ConfigDict


def stable_diffusion(c: ConfigDict, version: int = 1, size: int = 64) -> None:
  """The U-Net of Stable Diffusion over latents of `size` x `size` x 4.

  Rombach et al. 2022 (arXiv:2112.10752), in the settings of its published weights:
  version 1 has 859,520,964 parameters and reads a text 768 numbers wide (CLIP
  ViT-L/14), version 2 865,910,724 and 1024 (OpenCLIP ViT-H/14).
  """
  m = c.model
  m.net, m.widths, m.blocks = "unet", (320, 640, 1280, 1280), 2
  m.attention = (size, size // 2, size // 4)
  m.head_dim, m.heads = {1: (0, 8), 2: (64, 8)}[version]
  m.modulation, m.transformer, m.dropout = "shift", 1, 0.0
  m.groups, m.norm_eps, m.clock = 32, 1e-5, "scaled_linear"


def stable_diffusion_3(c: ConfigDict) -> None:
  """The MM-DiT of Stable Diffusion 3 Medium, over latents of 128x128x16.

  Esser et al. 2024 (arXiv:2403.03206), section 4, at depth 24: 64 channels a head, as
  many heads as blocks. It reads a text 4096 numbers wide (T5-XXL, and CLIP's two filled
  up with zeros) and a vector of 2048 (CLIP's two). In diffusers it has 2,028,328,000
  parameters; here the vector goes through one linear map instead of two, and the last
  block has no queries of the text, which nothing would read.
  """
  m = c.model
  m.net, m.dim, m.depth, m.heads, m.patch = "dit", 24 * 64, 24, 24, 2
  m.text_attention, m.dropout = "joint", 0.0


def unclip_decoder(c: ConfigDict) -> None:
  """DALL-E 2's decoder of 64x64 pixels, "3.5B", with its text encoder.

  Ramesh et al. 2022 (arXiv:2204.06125), appendix C, table 3: GLIDE's U-Net, learned
  variance, and a transformer over 256 tokens of text, 2048 wide and 24 deep. Bytes take
  the place of GLIDE's 50,257 tokens here, whose table would be 103 million more.
  """
  m = c.model
  m.net, m.widths, m.blocks = "unet", (512, 1024, 1536, 2048), 3
  m.attention, m.head_dim, m.resample = (32, 16, 8), 64, "block"
  m.modulation, m.text_attention, m.dropout = "scale_shift", "joint", 0.1
  c.diffusion.learn_variance = True
  c.text.encoder, c.text.max_tokens = "bytes", 256
  c.text.dim, c.text.depth, c.text.heads = 2048, 24, 32


def unclip_prior(c: ConfigDict) -> None:
  """The transformer of DALL-E 2's diffusion prior, "1B": 1.2 billion.

  Table 3: 2048 wide, 24 deep, 32 heads, over 256 tokens of text and some of its own.
  """
  c.model.dim, c.model.depth, c.model.heads = 2048, 24, 32


def unclip_ar_prior(c: ConfigDict) -> None:
  """The decoder of DALL-E 2's autoregressive prior: 0.8 billion.

  Table 3: 1664 wide, 24 deep, 26 heads, 384 tokens. Its text encoder is as large as
  `unclip_prior`, so that together they are 2.0 billion, where the table says "1B".
  """
  c.model.dim, c.model.depth, c.model.heads = 1664, 24, 26


def unclip_upsampler(c: ConfigDict, size: int = 256) -> None:
  """DALL-E 2's upsamplers, from 64 to 256, "700M", and from 256 to 1024, "300M".

  Table 3: ADM's U-Net without attention, which reads the small picture made large and
  no text. By these numbers they have 730 and 282 million.
  """
  m = c.model
  m.net, m.attention, m.middle_attention = "unet", (), False
  m.resample, m.modulation = "block", "scale_shift"
  m.widths, m.blocks, m.dropout = {
    256: ((320, 640, 960, 1280), 3, 0.1),
    1024: ((192, 192, 384, 384, 768, 768), 2, 0.0),
  }[size]
  c.data.size, c.data.low_size, c.text.encoder = size, size // 4, "none"


def imagen(c: ConfigDict) -> None:
  """Imagen's base model of 64x64 pixels, "2B".

  Saharia et al. 2022 (arXiv:2205.11487), appendix F.1: ADM's U-Net, which reads
  T5-XXL. How wide the text is when it is read is not published. The rest alone has 2.10
  billion; with 1024 numbers a token it is 2.17.
  """
  m = c.model
  m.net, m.widths, m.blocks = "unet", (512, 1024, 1536, 2048), 3
  m.attention, m.head_dim, m.resample = (32, 16, 8), 64, "block"
  m.modulation, m.text_attention, m.dropout = "scale_shift", "joint", 0.0
  c.data.size, c.text.dim = 64, 1024


def imagen_upsampler(c: ConfigDict, size: int = 256) -> None:
  """Imagen's Efficient U-Nets, from 64 to 256, "600M", and from 256 to 1024, "400M".

  Appendix F.2 and F.3, figures A.27 and A.28: the second differs from the first in that
  its pixels read the text and not one another. How long the vector is that modulates
  the blocks is not published; with 2048, as in the base model, and T5-XXL's 4096
  numbers a token the first has 600 million. The second cannot have 400: the
  convolutions of these blocks alone have 426.
  """
  m = c.model
  m.net, m.widths, m.blocks = "efficient_unet", (128, 256, 512, 1024), (2, 4, 8, 8)
  m.attention_levels = (3,) if size == 256 else ()
  m.text_levels, m.text_attention = (3,), "joint"
  m.attention_width, m.head_dim, m.dropout = 2, 256, 0.0
  m.project, m.embedding = True, 2048
  c.data.size, c.data.low_size, c.text.dim = size, size // 4, 4096
