"""The frozen networks against the implementations their weights come from."""

import jax
import jax.numpy as jnp
import lpips as lpips_pytorch
import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from pytorch_fid import inception as pytorch_fid
from torch_fidelity.interpolate_compat_tensorflow import (
  interpolate_bilinear_2d_like_tensorflow1x,
)
from transformers import Dinov2Config, Dinov2Model

from nets.pretrained import dinov2, efficientnet, inception, lpips, resize, vgg

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> jax.Array:
  return jnp.asarray(RNG.integers(256, size=(*shape, 3)), jnp.float32)


def nchw(x: jax.Array) -> torch.Tensor:
  return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def close(ours, theirs, rtol=1e-4) -> None:
  """Within rtol of the peer's largest number."""
  theirs = theirs.detach().numpy()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * abs(theirs).max())


def run(net, params, *args):
  return jax.jit(net.apply)({"params": params}, *args)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
  """In evaluation mode, each norm with statistics and an affine map of its own."""
  torch.manual_seed(0)
  for module in net.modules():
    if isinstance(module, torch.nn.Conv2d):
      torch.nn.init.kaiming_normal_(module.weight)
    if isinstance(module, torch.nn.BatchNorm2d):
      for tensor in (module.weight.data, module.running_var):
        tensor.uniform_(0.7, 1.3)
      for tensor in (module.bias.data, module.running_mean):
        tensor.normal_(std=0.1)
  return net.eval()


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_efficientnet(size) -> None:
  peer = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
  peer.load_state_dict(torch.load(efficientnet.path()))
  x = pixels(2, *size)
  ours = run(efficientnet.EfficientNetLite0(), efficientnet.load(), x)
  with torch.no_grad():
    scaled = (nchw(x) - 127) / 128
    close(ours.logits, peer(scaled))
    close(ours.pool, peer.extract_features(scaled).mean((2, 3)))


def test_inception(monkeypatch, tmp_path) -> None:
  # Both peers have the names and shapes of torchvision's.
  random = torchvision.models.inception_v3(
    num_classes=1008, aux_logits=False, init_weights=False
  )
  state = randomised(random).state_dict()
  file = tmp_path / inception.FILE
  torch.save(state, file)
  params = inception.load(file)

  names = ["2048", "logits", "logits_unbiased"]
  peer = fidelity.FeatureExtractorInceptionV3("random", names, str(file))
  x = pixels(2, 40, 33)
  x299 = resize.resize(x, 299, 299, "bilinear_tf1")
  ours = run(inception.InceptionV3(), params, x299)
  for a, b in zip(ours, peer(nchw(x).to(torch.uint8)), strict=True):
    close(a, b)

  # It is fully convolutional, so that a small image will do.
  x = pixels(1, 107, 139)
  monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
  small = pytorch_fid.InceptionV3(resize_input=False).eval()
  ours = run(inception.InceptionV3(center=127.5), params, x)
  close(ours.pool, small(nchw(x) / 255)[0].mean((2, 3)))


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_convolutions(net) -> None:
  peer = randomised(getattr(torchvision.models, net)())
  # The last pooling, which is not ours, left out.
  layers, x = peer.features[:-1], 2 * pixels(2, 47, 64) / 255 - 1
  y, taps = nchw(x), []
  for layer, following in zip(layers, peer.features[1:], strict=True):
    y = layer(y)
    if isinstance(layer, torch.nn.ReLU) and (
      net == "alexnet" or isinstance(following, torch.nn.MaxPool2d)
    ):
      taps.append(y.clone())
  state = {name: value.numpy() for name, value in peer.state_dict().items()}
  ours = run(vgg.Convolutions(net), vgg.convert(state), x)
  for a, b in zip(ours, taps, strict=True):
    close(a, b.permute(0, 2, 3, 1))


@pytest.mark.filterwarnings("ignore:.*(pretrained|weights).*:UserWarning")
@pytest.mark.parametrize(("net", "name"), [("vgg16", "vgg"), ("alexnet", "alex")])
def test_lpips(net, name) -> None:
  # Its own heads; the convolutions, which it would download, are ours.
  peer = lpips_pytorch.LPIPS(net=name, pnet_rand=True, verbose=False)
  params = lpips.load(net)
  convs = [m for m in peer.net.modules() if isinstance(m, torch.nn.Conv2d)]
  assert len(convs) == len(params["convolutions"])
  for i, conv in enumerate(convs):
    ours = params["convolutions"][f"conv_{i}"]
    conv.weight.data = torch.tensor(np.asarray(ours["kernel"]).transpose(3, 2, 0, 1))
    conv.bias.data = torch.tensor(np.asarray(ours["bias"]))

  x, y = (2 * pixels(2, 41, 64) / 255 - 1 for _ in range(2))
  y = y.at[1].set(0.9 * x[1])  # one pair far apart, one close together
  tx = nchw(x).requires_grad_()
  theirs = peer(tx, nchw(y))[:, 0, 0, 0]
  theirs.sum().backward()

  @jax.jit
  def ours(params, x, y):
    def total(x: jax.Array) -> tuple:
      distance = lpips.LPIPS(net).apply({"params": params}, x, y)
      return distance.sum(), distance

    return jax.grad(total, has_aux=True)(x)

  grad, distance = ours(params, x, y)
  close(distance, theirs)
  close(grad, tx.grad.permute(0, 2, 3, 1))


@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2(swiglu, tmp_path) -> None:
  torch.manual_seed(0)
  config = Dinov2Config(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=84,
    use_swiglu_ffn=swiglu,
  )
  peer = Dinov2Model(config).eval()
  with torch.no_grad():
    for p in peer.parameters():
      p.add_(0.2 * torch.randn_like(p))
  peer.save_pretrained(tmp_path)
  net, params = dinov2.load(tmp_path)
  for size in (84, 84), (56, 127):
    x = pixels(2, *size)
    scaled = torchvision.transforms.functional.normalize(
      nchw(x) / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    close(run(net, params, x), peer(scaled).pooler_output)


@pytest.mark.parametrize("size", [(5, 40), (100, 17), (37, 16)])
def test_resize(size) -> None:
  x = pixels(2, 37, 32)
  for name in ("bilinear", "bicubic"):
    ours = resize.resize(x, *size, name)
    theirs = torch.nn.functional.interpolate(nchw(x), size, mode=name)
    close(ours, theirs.permute(0, 2, 3, 1), rtol=1e-5)
  theirs = interpolate_bilinear_2d_like_tensorflow1x(nchw(x), size, align_corners=False)
  close(resize.resize(x, *size, "bilinear_tf1"), theirs.permute(0, 2, 3, 1), rtol=1e-5)
