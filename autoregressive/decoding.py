"""The decoding loop: number after number, all in one compiled scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from autoregressive import sampling
from autoregressive.sampling import Logits, Sampling
from nets import stream as streams
from nets.decoder import cached, caches, unstacked
from nets.stream import Stream
from text.cond import Cond, guide

# (state, numbers at place i, i) -> (state, logits at place i + 1).
Advance = Callable[
  [PyTree, Int[Array, " n"], Int[Array, ""]], tuple[PyTree, Float[Array, "n v"]]
]


def decode(
  state: PyTree,
  logits: Float[Array, "b v"],
  advance: Advance,
  keys: Key[Array, " n"],
  length: int,
  settings: Sampling,
  known: Int[Array, "n l"] | None = None,
  count: int = 0,
) -> Int[Array, "n {length}"]:
  """Draws `length` numbers of each sample, the first `count` of them as `known`.

  Args:
    state: what `advance` carries, such as caches.
    logits: at place 0. With twice as many rows as keys, the second half is the null
      condition's, and guided by `settings`.
    advance: takes one number of each of the logits' rows.
    keys: one a sample; draw i of it is at place i.
    length: of the sequence.
    settings: of guidance and filters.
    known: what is given of the sequences.
    count: how much of it.
  """
  guided, n = len(logits) > len(keys), len(keys)

  def pick(logits: Float[Array, "b v"], i: Int[Array, ""]) -> Int[Array, " n"]:
    if guided:
      scale = sampling.scale_at(settings, (i + 1) / length)
      logits = guide(logits, scale)
    drawn = sampling.draw(sampling.filtered(logits, settings), keys, i)
    if known is None:
      return drawn
    return jnp.where(i < count, known[:, i], drawn)

  def body(carry: tuple, i: Int[Array, ""]) -> tuple[tuple, Int[Array, " n"]]:
    state, logits = carry
    drawn = pick(logits, i)
    fed = jnp.concatenate([drawn, drawn]) if guided else drawn
    return advance(state, fed, i), drawn

  (_, logits), numbers = jax.lax.scan(body, (state, logits), jnp.arange(length - 1))
  last = pick(logits, jnp.asarray(length - 1))
  return jnp.concatenate([numbers.T.reshape(n, -1), last[:, None]], axis=1)


def begin(
  stream: Stream, params: PyTree, cond: Cond, batch: int, length: int
) -> tuple[PyTree, Logits, Advance]:
  """What `decode` starts from: caches with the condition, logits, and how to go on."""
  first, mask = stream.apply({"params": params}, cond, batch, method="prefix")
  b, m, _ = first.shape
  net, total = stream.decoder, m + length - 1
  own = unstacked(net, params["decoder"])
  angles = streams.angles_of(stream, m - 1)[:total]
  may_read = streams.readable(mask, total)
  reads = streams.causal(may_read[:, :m])
  reads = jnp.pad(reads, ((0, 0), (0, 0), (0, total - m)))
  state = caches(net, b, total)
  y, state = cached(net, own, state, first, angles[:m], reads, 0)

  def told(y: Float[Array, "b 1 d"]) -> Logits:
    return stream.apply({"params": params}, y, method="logits")[:, 0]

  def advance(
    state: PyTree, numbers: Int[Array, " b"], i: Int[Array, ""]
  ) -> tuple[PyTree, Logits]:
    x = stream.apply({"params": params}, numbers[:, None], i[None], method="items")
    at = m + i
    seen = reads_of(may_read, at)
    angle = jax.lax.dynamic_slice_in_dim(angles, at, 1)
    y, state = cached(net, own, state, x, angle, seen, at)
    return state, told(y)

  return state, told(y[:, -1:]), advance


def reads_of(mask: Bool[Array, "b s"], at: Int[Array, ""]) -> Bool[Array, "b 1 s"]:
  """What the item at slot `at` reads: row `at` of `streams.causal`."""
  slots = jnp.arange(mask.shape[1])
  return ((mask & (slots < at)) | (slots == at))[:, None]
