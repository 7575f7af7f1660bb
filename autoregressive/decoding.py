"""The decoding loop: number after number, all in one compiled scan."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from autoregressive import sampling
from autoregressive.sampling import Logits, Sampling
from nets import stream as streams
from nets.decoder import Decoder, Layers, cached, caches, unstacked
from nets.masked import MaskedTokens, along
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
  kept: Bool[Array, "#n l"] | None = None,
) -> Int[Array, "n {length}"]:
  """Draws `length` numbers of each sample, but for those that are `known` and `kept`.

  Args:
    state: what `advance` carries, such as caches.
    logits: at place 0. With twice as many rows as keys, the second half is the null
      condition's, and guided by `settings`.
    advance: takes one number of each of the logits' rows.
    keys: one a sample; draw i of it is at place i.
    length: of the sequence.
    settings: of guidance and filters.
    known: what is given of the sequences.
    kept: which of it.
  """
  guided, n = len(logits) > len(keys), len(keys)

  def pick(logits: Float[Array, "b v"], i: Int[Array, ""]) -> Int[Array, " n"]:
    if guided:
      scale = sampling.scale_at(settings, (i + 1) / length)
      logits = guide(logits, scale)
    drawn = sampling.draw(sampling.filtered(logits, settings), keys, i)
    if known is None:
      return drawn
    return jnp.where(kept[:, i], known[:, i], drawn)

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
  apply = functools.partial(stream.apply, {"params": params})
  first, mask = apply(cond, batch, method="prefix")
  extra = first.shape[1] - 1
  angles = streams.angles_of(stream, extra)[: extra + length]

  def item(numbers: Int[Array, " b"], i: Int[Array, ""]) -> Float[Array, "b 1 d"]:
    return apply(numbers[:, None], i[None], method="items")

  layers = unstacked(stream.decoder, params["decoder"])
  return _begin(stream.decoder, layers, first, mask, angles, item, apply)


def in_order(
  net: MaskedTokens, params: PyTree, cond: Cond, places: Int[Array, "b l"]
) -> tuple[PyTree, Logits, Advance]:
  """`begin` of a permuted decoder: number i is the one at places[:, i]."""
  apply = functools.partial(net.apply, {"params": params})
  first, mask = apply(cond, len(places), method="front")
  first = jnp.concatenate([first, apply(places[:, :1], method="begin")], axis=1)
  mask = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
  decoder = net.trunk.decoder
  angles = along(decoder, first.shape[1] + places.shape[1] - 1)

  def item(numbers: Int[Array, " b"], i: Int[Array, ""]) -> Float[Array, "b 1 d"]:
    at, after = (places[:, j, None] for j in (i, i + 1))
    return apply(numbers[:, None], at, after, method="next")

  layers = unstacked(decoder, params["trunk"]["decoder"])
  return _begin(decoder, layers, first, mask, angles, item, apply)


def _begin(
  net: Decoder,
  own: Layers,
  first: Float[Array, "b m d"],
  mask: Bool[Array, "b m"],
  angles: Float[Array, "l e"],
  item: Callable[[Int[Array, " b"], Int[Array, ""]], Float[Array, "b 1 d"]],
  apply: Callable[..., Array],
) -> tuple[PyTree, Logits, Advance]:
  """Of items before the first number, and those of numbers; `angles` are of all."""
  (b, m, _), total = first.shape, len(angles)
  may_read = streams.readable(mask, total)
  reads = streams.causal(may_read[:, :m])
  reads = jnp.pad(reads, ((0, 0), (0, 0), (0, total - m)))
  state = caches(net, b, total)
  y, state = cached(net, own, state, first, angles[:m], reads, 0)

  def told(y: Float[Array, "b 1 d"]) -> Logits:
    return apply(y, method="logits")[:, 0]

  def advance(
    state: PyTree, numbers: Int[Array, " b"], i: Int[Array, ""]
  ) -> tuple[PyTree, Logits]:
    x, at = item(numbers, i), m + i
    seen = reads_of(may_read, at)
    angle = jax.lax.dynamic_slice_in_dim(angles, at, 1)
    y, state = cached(net, own, state, x, angle, seen, at)
    return state, told(y)

  return state, told(y[:, -1:]), advance


def reads_of(mask: Bool[Array, "b s"], at: Int[Array, ""]) -> Bool[Array, "b 1 s"]:
  """What the item at slot `at` reads: row `at` of `streams.causal`."""
  slots = jnp.arange(mask.shape[1])
  return ((mask & (slots < at)) | (slots == at))[:, None]
