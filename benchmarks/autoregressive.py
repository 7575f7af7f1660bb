"""Decoding with a cache, in one compiled scan, against transformers' `generate`.

    python benchmarks/autoregressive.py [rounds] [batch] [length] [dim] [depth]

Needs PyTorch and transformers: the environment of `make parity`. A Llama of random
weights and one shape on both sides, 256 values, float32, on the CPU, draws `length`
tokens of each of `batch` sequences at temperature 1 (`generate` with its own cache).
The two take turns, so that both see the same machine; the ratio of tokens a second
(ours / theirs: above 1, ours is faster) is what counts. Then ours again with buffers of
2 and 4 times the length, of which each token reads all: processor time a token.

The machine must be idle, or give both a single core (`taskset -c 0 python ...`) and
read the ratio of processor time.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
  import torch

  # Makes torchvision importable, which transformers asks for.
  importlib.import_module("tests.parity.conftest")
  from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
except ImportError as error:
  sys.exit(
    f"autoregressive compares with PyTorch and transformers, but {error.name} is not"
    " installed; run `make parity` once, then .venv-parity/bin/python"
    " benchmarks/autoregressive.py."
  )

import jax
import jax.numpy as jnp

from autoregressive import decoding
from autoregressive.sampling import Sampling
from core import parallel
from core.family import sample_keys
from nets.decoder import Decoder
from nets.stream import Stream
from text.cond import Cond
from text.encoders import NoEncoder

VOCAB, HEAD_DIM = 256, 32


def ours(batch: int, drawn: int, dim: int, depth: int, buffer: int) -> Callable:
  """Draws a batch in one compiled program, with caches of `buffer` slots."""
  decoder = Decoder(dim, depth, dim // HEAD_DIM)
  stream = Stream(NoEncoder(), decoder, (1, buffer, 1), VOCAB)
  x = jnp.zeros((1, 2), jnp.int32)
  short = Stream(NoEncoder(), decoder, (1, 2, 1), VOCAB)
  params = jax.jit(short.init)(jax.random.key(0), x, Cond())["params"]

  def sample(params: dict, rng: jax.Array) -> jax.Array:
    start = decoding.begin(stream, params, Cond(), batch, buffer)
    return decoding.decode(*start, sample_keys(rng, batch), drawn, Sampling())

  compiled = jax.jit(sample).lower(params, jax.random.key(1)).compile()
  return lambda: jax.block_until_ready(compiled(params, jax.random.key(1)))


def llama(dim: int, depth: int, heads: int, length: int) -> LlamaForCausalLM:
  """One of our decoder's shape, for VOCAB values."""
  return LlamaForCausalLM(
    LlamaConfig(
      vocab_size=VOCAB,
      hidden_size=dim,
      intermediate_size=32 * -(-8 * dim // 96),
      num_hidden_layers=depth,
      num_attention_heads=heads,
      num_key_value_heads=heads,
      max_position_embeddings=length + 1,
    )
  )


def theirs(batch: int, length: int, dim: int, depth: int) -> Callable:
  """The same by `generate`, from one token of a beginning."""
  net = llama(dim, depth, dim // HEAD_DIM, length).eval()
  settings = GenerationConfig(
    max_new_tokens=length,
    min_new_tokens=length,
    do_sample=True,
    top_k=0,
    pad_token_id=0,
    eos_token_id=None,
    bos_token_id=None,
  )
  begin = torch.zeros((batch, 1), dtype=torch.long)

  @torch.inference_mode()
  def sample() -> None:
    found = net.generate(
      begin, attention_mask=torch.ones_like(begin), generation_config=settings
    )
    assert found.shape == (batch, length + 1)

  return sample


def seconds(sample: Callable) -> tuple[float, float]:
  """(wall, processor) time of one batch."""
  began = time.perf_counter(), time.process_time()
  sample()
  return time.perf_counter() - began[0], time.process_time() - began[1]


def main(
  rounds: str = "5",
  batch: str = "16",
  length: str = "256",
  dim: str = "256",
  depth: str = "4",
) -> None:
  """Prints tokens a second, the ratio, and the cost of longer buffers."""
  parallel.keep_freed_memory()
  n, tokens, width, layers = (int(a) for a in (batch, length, dim, depth))
  run = ours(n, tokens, width, layers, tokens)
  peer = theirs(n, tokens, width, layers)
  for sample in (run, peer):
    sample()
  times = [(*seconds(run), *seconds(peer)) for _ in range(int(rounds))]
  print(
    f"{torch.get_num_threads()} threads, float32, {rounds} rounds in turn of {batch}"
    f" sequences of {length}, {depth} layers of {dim}"
  )
  print("           tokens a second (median)   ratio of")
  print("                ours   theirs       medians  best")
  columns = list(zip(*times, strict=True))
  for name, own, other in (
    ("wall", columns[0], columns[2]),
    ("processor", columns[1], columns[3]),
  ):
    median, peer_median = statistics.median(own), statistics.median(other)
    print(
      f"{name:10}{n * tokens / median:10,.0f}{n * tokens / peer_median:9,.0f}"
      f"{peer_median / median:14.2f}{min(other) / min(own):6.2f}"
    )
  for times_longer in (1, 2, 4):
    longer = ours(n, tokens, width, layers, times_longer * tokens)
    longer()
    half = ours(n, tokens // 2, width, layers, times_longer * tokens)
    half()
    rows = [(seconds(half)[1], seconds(longer)[1]) for _ in range(int(rounds))]
    first, both = (min(column) for column in zip(*rows, strict=True))
    early, late = first / (tokens // 2), (both - first) / (tokens - tokens // 2)
    print(
      f"a buffer of {times_longer * tokens}: {1e6 * early / n:.1f} us a token in the"
      f" first half of {tokens}, {1e6 * late / n:.1f} us in the second"
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
