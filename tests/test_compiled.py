"""What a program takes of a device, counted without the device it is for."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import chips, flops, hlo, parallel, roofline, topology, traffic
from core.errors import UserError
from nets.dit import DiT
from pipelines import compiled, fitting, pods
from tests.runs import load_config
from text.cond import Cond

CHIP = chips.CHIPS["v5e"]


@pytest.mark.parametrize("remat", [False, True])
def test_a_transformers_operations_are_those_of_its_formula(remat):
  b, t, d, depth, patch = 2, 16, 32, 3, 4
  net = DiT(dim=d, depth=depth, heads=4, patch=patch, out_channels=3, remat=remat)
  x, logsnr = jnp.zeros((b, 16, 16, 3)), jnp.zeros(b)
  params = jax.eval_shape(net.init, jax.random.key(0), x, logsnr, Cond())

  def loss(params):
    return jnp.sum(net.apply(params, x, logsnr, Cond()))

  # Of a picture: qkv and out, the two products of attention, the MLP, adaLN.
  block = 2 * t * 4 * d**2 + 4 * t**2 * d + 2 * t * 8 * d**2 + 2 * 6 * d**2
  noise = params["params"]["noise"]
  ends = 2 * sum(a.size for a in jax.tree.leaves(noise) if a.ndim == 2)
  ends += 2 * t * patch**2 * 3 * d * 2 + 2 * 2 * d**2
  assert flops.of(loss, params) == (b * (depth * block + ends), True)
  # Backward is twice the forward pass, but for what nobody asks for: the gradient of
  # the picture and of the noise level.
  skipped = 2 * t * patch**2 * 3 * d + 2 * noise["Dense_0"]["kernel"].size
  again = depth * block if remat else 0
  wanted = 3 * (depth * block + ends) + again - skipped
  assert flops.of(jax.grad(loss), params).flops == b * wanted


@pytest.mark.parametrize(
  "settings",
  [
    {"window_strides": (1, 1), "padding": ((1, 1), (1, 1))},
    {"window_strides": (2, 2), "padding": ((0, 1), (2, 0))},
    {
      "window_strides": (1, 1),
      "padding": ((2, 1), (1, 2)),
      "lhs_dilation": (2, 2),
      "rhs_dilation": (1, 2),
    },
  ],
)
def test_a_convolutions_operations_are_its_products(settings):
  x, kernel = np.ones((2, 9, 7, 3), np.float32), np.ones((3, 3, 3, 5), np.float32)

  def conv(x, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=dims, **settings)

  # Of ones, each product of two numbers adds 1.
  assert flops.of(conv, x, kernel).flops == 2 * float(conv(x, kernel).sum())
  found = hlo.parse(jax.jit(conv).lower(x, kernel).compile().as_text())
  assert hlo.flops(found).flops == 2 * float(conv(x, kernel).sum())


def test_of_a_form_for_each_platform_the_cheapest_counts():
  def fn(x):
    twice = lambda x: x @ (x @ x)  # noqa: E731
    return jax.lax.platform_dependent(x, cpu=twice, default=lambda x: x @ x)

  assert flops.of(fn, jnp.ones((5, 5))).flops == 2 * 5**3


def test_a_loops_body_counts_as_often_as_it_runs():
  depth, rows, wide = 5, 16, 64
  mesh = parallel.make(load_config("configs/quickstart.py").parallel).mesh
  cut = NamedSharding(mesh, PartitionSpec("data"))
  whole = NamedSharding(mesh, PartitionSpec())

  def loss(weights, x):
    layer = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
    return jnp.sum(jax.lax.scan(layer, x, weights)[0])

  fn = jax.jit(jax.grad(loss), in_shardings=(whole, cut), out_shardings=whole)
  shapes = (
    jax.ShapeDtypeStruct((depth, wide, wide), jnp.float32),
    jax.ShapeDtypeStruct((rows, wide), jnp.float32),
  )
  program = fn.lower(*shapes).compile()
  # The product, and the gradients of both its sides; all layers and devices.
  analytic = 3 * 2 * rows * wide * wide * depth
  once = program.cost_analysis()["flops"]
  assert once < analytic / mesh.size / 2  # XLA's own analysis
  assert flops.of(fn, *shapes).flops == analytic
  found = hlo.parse(program.as_text())
  assert hlo.flops(found) == (analytic / mesh.size, True)
  gradient = 4 * wide * wide
  sent = sum(each.bytes * each.times for each in hlo.collectives(found))
  assert sent == depth * gradient
  # Every layer's weights are read, forward and backward, and the gradient is written.
  moved = traffic.moved(found)
  assert 4 * depth * gradient < moved < 20 * depth * gradient


TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (input.5: f32[8,64]) -> f32[8,8] {
  %input.5 = f32[8,64]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[8,64]{1,0:T(8,128)} all-reduce(%input.5), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.2 = f32[8,8]{1,0} dynamic-slice(%all-reduce.9, %c), \
dynamic_slice_sizes={8,8}
}

%start (param_0: bf16[1,8,8]) -> bf16[1,8,64] {
  %param_0 = bf16[1,8,8]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.29 = bf16[1,8,64]{2,1,0} all-gather(%param_0), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={2}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %custom-call.3 = bf16[1,8,64]{2,1,0} custom-call(%all-gather.29), \
custom_call_target="AsyncCollectiveStart"
}

%goes_on (param_0: bf16[1,8,8]) -> bf16[1,8,64] {
  %param_0 = bf16[1,8,8]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.30 = bf16[1,8,64]{2,1,0} all-gather(%param_0), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={2}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%slice (stack: f32[5,8,8], i: s32[]) -> f32[8,8] {
  %stack = f32[5,8,8]{2,1,0} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %dynamic-slice.1 = f32[1,8,8]{2,1,0} dynamic-slice(%stack, %i, %i, %i), \
dynamic_slice_sizes={1,8,8}
  ROOT %bitcast.1 = f32[8,8]{1,0} bitcast(%dynamic-slice.1)
}

%of_slice (whole: f32[5,8,8], j: s32[]) -> f32[8,8] {
  %whole = f32[5,8,8]{2,1,0} parameter(0)
  %j = s32[]{:T(128)S(6)} parameter(1)
  %slice.3 = f32[8,8]{1,0} fusion(%whole, %j), kind=kLoop, calls=%slice
  ROOT %double = f32[8,8]{1,0} add(%slice.3, %slice.3)
}

%body (p: (s32[], f32[5,8,8])) -> (s32[], f32[5,8,8]) {
  %p = (s32[]{:T(128)S(6)}, f32[5,8,8]{2,1,0}) parameter(0)
  %n = s32[]{:T(128)S(6)} get-tuple-element(%p), index=0
  %w = f32[5,8,8]{2,1,0} get-tuple-element(%p), index=1
  %small = bf16[1,8,8]{2,1,0:T(8,128)(2,1)S(1)} constant({...})
  %large = f32[8,64]{1,0} constant({...})
  %one = f32[8,8]{1,0} fusion(%w, %n), kind=kLoop, calls=%of_slice
  %gone = bf16[1,8,64]{2,1,0} fusion(%small), kind=kCustom, calls=%start
  %gone.2 = bf16[1,8,64]{2,1,0} fusion(%small), kind=kOutput, calls=%goes_on
  %part = f32[8,8]{1,0} fusion(%large), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[]{:T(128)S(6)}, f32[5,8,8]{2,1,0}) tuple(%n, %w)
}

%condition (p: (s32[], f32[5,8,8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %p = (s32[], f32[5,8,8]{2,1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %five), direction=LT
}

ENTRY %main (w: f32[5,8,8], x: f32[512,4]) -> f32[8,8] {
  %w = f32[5,8,8]{2,1,0} parameter(0)
  %x = f32[512,4]{1,0} parameter(1)
  %slice-start = ((f32[512,4]{1,0}), f32[128,4]{1,0:S(1)}, s32[]{:S(2)}) \
slice-start(%x), slice={[0:128], [0:4]}
  %slice-done = f32[128,4]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %tuple.1 = (s32[]{:T(128)S(6)}, f32[5,8,8]{2,1,0}) tuple(%n, %w)
  %loop = (s32[]{:T(128)S(6)}, f32[5,8,8]{2,1,0}) while(%tuple.1), \
condition=%condition, body=%body
  ROOT %end = f32[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_tpus_program_is_read_as_it_is_meant():
  found = hlo.parse(TPU)
  scatter, gather = hlo.collectives(found)
  # A fusion that reduces and keeps a slice; a gather that goes on in another fusion.
  assert scatter == ("reduce-scatter", 4 * 8 * 64, 8, 5)
  assert gather == ("all-gather", 2 * 8 * 64, 8, 5)
  assert scatter.sent == 5 * 7 / 8 * 2048
  assert scatter._replace(kind="all-reduce").sent == 2 * scatter.sent
  # Once: the prefetched rows, into fast memory. In the loop: a slice read and written,
  # and what the collectives read and write there.
  assert traffic.moved(found) == 4 * 128 * 4 + 5 * (2 * 256 + 2 * 1024 + 2048 + 256)


GPU = """\
ENTRY %main (x: f32[256,16,16,16], k: f32[16,3,3,16]) -> f32[] {
  %x = f32[256,16,16,16]{3,2,1,0} parameter(0)
  %k = f32[32,3,3,16]{3,2,1,0} parameter(1)
  %y = (f32[256,16,16,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %dy = f32[256,16,16,32]{3,2,1,0} get-tuple-element(%y), index=0
  %dk = (f32[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %dx = (f32[256,16,16,16]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %k), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %a = f32[8,64]{1,0} parameter(2)
  %b = f32[64,4]{1,0} parameter(3)
  ROOT %c = (f32[8,4]{1,0}, s8[0]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
}
"""


def test_a_gpus_libraries_are_counted():
  conv = 2 * 256 * 46 * 46 * 16 * 32  # of 3 x 16 taps 46 meet the picture
  assert hlo.flops(hlo.parse(GPU)).flops == 3 * conv + 2 * 8 * 64 * 4


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("replica_groups={{0,1},{2,3}}", 2),
    ("replica_groups=[2,4]<=[8]", 4),
    ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", 2),
    ("replica_groups={}", 16),
    ("source_target_pairs={{0,1},{1,0}}", 2),
  ],
)
def test_groups_of_devices_are_read(groups, size):
  assert hlo.group_size(f"channel_id=1, {groups}, dimensions={{0}}", 16) == size


@pytest.mark.parametrize(
  ("message", "gib"),
  [
    ("Ran out of memory in memory space hbm. Used 27.49G of 15.75G hbm.", 27.49),
    ("memory required for HLO temporaries (96.00G) exceeds available HBM (15.75G)", 98),
  ],
)
def test_what_is_too_large_is_known_from_the_compilers_message(message, gib):
  assert roofline.needed_memory(message, 2 * 2**30) == gib * 2**30


def test_a_config_is_compiled_for_other_devices_and_said_in_words(tmp_path, capsys):
  """The step with parameters in two parts, and the sampler; figures add up."""
  config = load_config("configs/quickstart.py")
  config.data.batch_size, config.sample.steps = 16, 2
  config.parallel.backend, config.parallel.fsdp = "mesh", 2
  with compiled.parts(config, "") as parts:
    figures = pods.of_part(parts[""], jax.devices()[:4], CHIP)
  step, drawn = figures["step"], figures["sample"]
  memory = step["memory"]
  assert figures["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
  assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
  half = 2 * step["parameters"]  # of four bytes each
  assert half < memory["parameters"] < 1.5 * half  # small ones are whole
  assert memory["peak"] > memory["resident"] >= 4 * memory["parameters"]
  # Weights travel, not activations: no device does another's work.
  assert step["flops"]["compiled"] == step["flops"]["counted"]
  kinds = {each["kind"] for each in step["collectives"]}
  assert "all-gather" in kinds
  assert kinds & {"all-reduce", "reduce-scatter"}
  assert step["bound"] == max(step["seconds"].values())
  assert 0 < step["utilisation"] <= 1
  assert drawn["pictures"] % 4 == 0
  assert drawn["flops"]["compiled"] > 0
  json.dumps(figures)
  said = capsys.readouterr().out
  for word in ("optimizer", "activations", "collectives", "utilisation", "drawing"):
    assert word in said


def test_changes_are_tried_until_a_step_fits():
  """Alone, then together; memory here is a plain function of the settings."""
  config = load_config("configs/quickstart.py")
  config.model.remat, config.data.batch_size = False, 64
  compiled_with = []

  def attempt(own, state=8.0, activations=32.0):
    fsdp, parts = own.parallel.fsdp, own.optim.microbatches
    kept = activations / parts / (4 if own.model.remat else 1)
    peak = state / fsdp + kept
    compiled_with.append((own.model.remat, parts, fsdp))
    memory = {"peak": peak, "limit": limit, "averages": 0.0}
    memory |= {"parameters": state / fsdp, "optimizer": 0.0}
    return {"fits": peak <= limit, "memory": memory, "bound": 1.0}

  limit = 20.0
  found = attempt(config)
  results = fitting.tried(config, 8, found, attempt)
  assert [each["fits"] for each in results] == [True, False, False]
  assert results[0]["change"] == {"model.remat": True}
  limit = 4.0
  last = fitting.tried(config, 8, found, attempt)[-1]
  assert last["fits"]
  assert set(last["change"]) == {"model.remat", "optim.microbatches", "parallel.fsdp"}
  assert compiled_with[-1][1:] == (
    last["change"]["optim.microbatches"],
    last["change"]["parallel.fsdp"],
  )
  limit = 0.1
  assert not any(each["fits"] for each in fitting.tried(config, 8, found, attempt))
  assert "nothing tried fits" in pods.of_tried([{**last, "fits": False}], CHIP)[-1]


@pytest.mark.parametrize(
  ("name", "sentence"),
  [
    ("v5e:3x7", "no topology of v5e"),
    ("v5f:2x4", "did you mean 'v5e'"),
    ("h100:3", "h100:8"),
    ("h100:8", "pip install jax-cuda13-plugin"),
    ("v5e:2x4", "pip install libtpu"),
  ],
)
def test_a_topology_that_cannot_be_is_refused(name, sentence, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=sentence):
    topology.named(name)


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_stages_and_configs_stand_for_trained_runs():
  """A generator's latents are known from its autoencoder's config alone."""
  with compiled.parts(load_config("configs/pipelines/dalle.py"), "generator") as parts:
    assert list(parts) == ["generator"]
    state, batch = compiled.shapes(
      parts["generator"], compiled.made(parts["generator"])
    )
  assert batch["x"].dtype == np.int32
  assert jax.tree.leaves(state.params)
  config = load_config("configs/diffusion/dit.py", "fashion_mnist")
  config.data.codec = "configs/vae/kl.py:fashion_mnist"
  with compiled.parts(config, "") as parts:
    _, batch = compiled.shapes(parts[""], compiled.made(parts[""]))
  assert batch["x"].shape == (64, 8, 8, 4)
  config.data.codec = "configs/nothing.py"
  with pytest.raises(UserError, match="no config file"), compiled.parts(config, ""):
    pass


def installed(module: str):
  return pytest.mark.skipif(
    importlib.util.find_spec(module) is None,
    reason=f"the compiler {module} is not installed, see docs/pods.md",
  )


@pytest.mark.parametrize(
  "name",
  [
    pytest.param("v5e:2x4", marks=installed("libtpu")),
    pytest.param("h100:8", marks=installed("jax_cuda13_plugin")),
  ],
)
def test_a_loop_is_compiled_for_a_machine_that_is_not_here(name):
  chip, devices = topology.named(name)
  assert len(devices) == 8
  assert chip is chips.CHIPS[name.split(":")[0]]
  mesh = jax.sharding.Mesh(np.array(devices), ("data",))
  whole = NamedSharding(mesh, PartitionSpec())
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 256, 256), (512, 256))]
  fn = jax.jit(
    lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0],
    in_shardings=(whole, whole),
  )
  found = hlo.parse(fn.lower(*shapes).compile().as_text())
  assert hlo.flops(found) == (2 * 5 * 512 * 256 * 256, True)


def test_compiling_says_all_in_a_file(tmp_path, monkeypatch):
  figures = {"step": {"fits": True}}
  monkeypatch.setattr(topology, "named", lambda name: (CHIP, jax.devices()))
  monkeypatch.setattr(pods, "of_part", lambda *args: figures)
  config = load_config("configs/quickstart.py")
  pods.report(config, str(tmp_path / "run"), "v5e:2x4", "")
  found = json.loads(Path(tmp_path / "run" / "compile.json").read_text())
  assert found["parts"] == {"diffusion.ddpm": figures}
  assert found["chip"]["source"] == CHIP.source
