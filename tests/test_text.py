"""Captions to conditions: the tokenizer, `Cond`, and what encoders do with null."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from text import bytes as byte_tokens
from text import encoders
from text.cond import Cond, guide

CAPTIONS = ["red heart", "红心", "赤いハート", "قلب أحمر", "o’clock ♥ ❤️"]


def config(**fields):
  defaults = {
    "max_tokens": 8,
    "dim": 8,
    "depth": 2,
    "heads": 2,
    "classes": 0,
    "embedding": "",
  }
  return ConfigDict({"encoder": "bytes", **defaults, **fields})


def untokenize(tokens, mask):
  return bytes((tokens[mask] - 1).tolist()).decode("utf-8")


# The tokenizer.


@pytest.mark.parametrize("caption", CAPTIONS)
def test_tokens_are_the_caption(caption):
  length = len(caption.encode())
  for size in (length, length + 5):
    tokens, mask = byte_tokens.tokenize(caption, size)
    assert untokenize(tokens, mask) == caption
    assert mask.tolist() == [i < length for i in range(size)]
    assert (tokens[length:] == 0).all()
    assert tokens.max() < byte_tokens.VOCAB_SIZE


def test_a_long_caption_is_cut():
  tokens, mask = byte_tokens.tokenize("yellow circle", 6)
  assert untokenize(tokens, mask) == "yellow"
  assert mask.all()


@pytest.mark.parametrize(
  ("one", "two"),
  [
    ("  Red HEART\n", "red heart"),
    ("\u304b\u3099", "\u304c"),  # ka and a voicing mark, or ga in one character
  ],
)
def test_case_outer_spaces_and_unicode_form_mean_nothing(one, two):
  for a, b in zip(
    byte_tokens.tokenize(one, 12), byte_tokens.tokenize(two, 12), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_a_zero_byte_is_not_padding():
  tokens, mask = byte_tokens.tokenize("a\0b", 4)
  assert tokens.tolist() == [98, 1, 99, 0]
  assert mask.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
  ("caption", "same"), [("\ud83d heart", "? heart"), ("a\udcffb", "a?b")]
)
def test_halves_of_characters_are_question_marks(caption, same):
  assert untokenize(*byte_tokens.tokenize(caption, 12)) == same


# Cond.


def batch_of_captions(captions=CAPTIONS, size=8):
  make = encoders.raw(config(max_tokens=size))
  return jax.tree.map(lambda *rows: jnp.stack(rows), *[make(c, 0) for c in captions])


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_null_is_no_text_and_no_label():
  cond = batch_of_captions().replace(
    label=jnp.arange(5), seq=jnp.ones((5, 8, 2)), pooled=jnp.ones((5, 2))
  )
  null = cond.null_like()
  assert not null.mask.any()
  assert not null.tokens.any()
  assert not null.seq.any()
  assert not null.pooled.any()
  assert (null.label == -1).all()
  assert_same(null.null_like(), null)
  assert jax.tree.leaves(Cond().null_like()) == []


def test_with_null_is_own_then_null():
  cond = Cond(label=jnp.array([2, 0]), pooled=jnp.ones((2, 3)))
  both = cond.with_null()
  assert both.label.tolist() == [2, 0, -1, -1]
  assert_same(jax.tree.map(lambda a: a[:2], both), cond)
  assert_same(jax.tree.map(lambda a: a[2:], both), cond.null_like())


def test_drop_makes_whole_examples_null_at_its_rate():
  n, rate = 4000, 0.3
  cond = jax.tree.map(lambda a: jnp.repeat(a[:1], n, 0), batch_of_captions())
  cond = cond.replace(label=jnp.arange(n))
  keys = jax.random.split(jax.random.key(0), n)
  dropped = cond.drop(keys, rate)
  gone = np.asarray(dropped.label == -1)
  assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
  at = lambda tree, rows: jax.tree.map(lambda a: np.asarray(a)[rows], tree)  # noqa: E731
  assert_same(at(dropped, gone), at(cond.null_like(), gone))
  assert_same(at(dropped, ~gone), at(cond, ~gone))


def test_drop_depends_on_the_examples_key_alone():
  cond, keys = Cond(label=jnp.arange(64)), jax.random.split(jax.random.key(0), 64)
  whole = cond.drop(keys, 0.5).label
  halves = [
    Cond(label=cond.label[rows]).drop(keys[rows], 0.5).label
    for rows in (slice(32), slice(32, 64))
  ]
  np.testing.assert_array_equal(jnp.concatenate(halves), whole)
  assert (cond.drop(keys, 0.0).label == cond.label).all()
  assert (cond.drop(keys, 1.0).label == -1).all()


def test_guidance_extrapolates_from_null_to_own():
  own, null = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, -1.0]])
  both = jnp.concatenate([own, null])
  np.testing.assert_array_equal(guide(both, 0.0), null)
  np.testing.assert_array_equal(guide(both, 1.0), own)
  # Ho & Salimans 2022, eq. 6, with w = 2.
  np.testing.assert_allclose(guide(both, 3.0), (1 + 2) * own - 2 * null)


# Encoders.


@functools.cache
def compiled(module):
  return jax.jit(module.init), jax.jit(module.apply)


def encode(text, cond, params=None):
  init, apply = compiled(encoders.make(text))
  params = params or init(jax.random.key(0), cond)
  return apply(params, cond), params


def test_the_label_encoder_has_a_row_for_no_class():
  cond = Cond(label=jnp.array([0, 2, -1, -1]))
  encoded, params = encode(config(encoder="label", classes=3), cond)
  table = params["params"]["classes"]["embedding"]
  assert table.shape == (4, 8)
  np.testing.assert_array_equal(encoded.pooled, table[jnp.array([0, 2, 3, 3])])


def test_the_byte_encoder_does_not_read_padding():
  cond = batch_of_captions(["red", "a heart"])
  encoded, params = encode(config(), cond)
  noisy = cond.replace(tokens=jnp.where(cond.mask, cond.tokens, 77))
  again, _ = encode(config(), noisy, params)
  np.testing.assert_array_equal(again.pooled, encoded.pooled)
  mask = np.asarray(cond.mask)
  np.testing.assert_array_equal(again.mask, mask)
  np.testing.assert_array_equal(
    np.asarray(again.seq)[mask], np.asarray(encoded.seq)[mask]
  )
  # What it does read matters, and so does its order.
  other, _ = encode(config(), batch_of_captions(["rde", "a heart"]), params)
  assert (other.pooled[0] != encoded.pooled[0]).any()
  np.testing.assert_array_equal(other.pooled[1], encoded.pooled[1])


def test_pooled_text_is_the_mean_of_its_tokens():
  cond = batch_of_captions(["red", ""])
  encoded, _ = encode(config(), cond)
  want = np.asarray(encoded.seq)[0, :3].mean(0)
  np.testing.assert_allclose(encoded.pooled[0], want, rtol=1e-5, atol=1e-6)
  # No text at all is the null condition: finite, and nothing pooled.
  assert np.isfinite(encoded.seq).all()
  np.testing.assert_array_equal(encoded.pooled[1], 0)


def test_an_empty_caption_is_the_null_condition():
  cond = batch_of_captions([""])
  assert_same(cond, cond.null_like())


def test_no_encoder_passes_nothing_on():
  encoded, _ = encode(config(encoder="none"), Cond())
  assert jax.tree.leaves(encoded) == []
  assert jax.tree.leaves(encoders.raw(config(encoder="none"))("a caption", 3)) == []


@pytest.mark.parametrize(
  ("fields", "label", "sentence"),
  [
    ({"encoder": "byte"}, 0, "did you mean 'bytes'"),
    ({"encoder": "label", "classes": 3}, 3, r"label 3 is not in \[0, text.classes=3\)"),
    ({"encoder": "label", "classes": 3}, -1, "label -1 is not in"),
  ],
)
def test_raw_conditions_refuse(fields, label, sentence):
  with pytest.raises(UserError, match=sentence):
    encoders.raw(config(**fields))("", label)


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"encoder": "byte"}, "did you mean 'bytes'"),
    ({"encoder": "label"}, "needs text.classes"),
  ],
)
def test_encoders_refuse(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    encoders.make(config(**fields))


def test_guidance_needs_a_null_condition_that_was_trained():
  encoders.check_guidance(config(encoder="bytes", drop=0.1), 3.0)
  encoders.check_guidance(config(encoder="bytes", drop=0.0), 1.0)
  encoders.check_guidance(config(encoder="none", drop=0.0), 3.0)
  with pytest.raises(UserError, match="set text.drop above 0"):
    encoders.check_guidance(config(encoder="bytes", drop=0.0), 3.0)
  vectors = {"embedding": "somewhere", "embedding_of_caption": False}
  vectors["embedding_drop"] = 0.1
  encoders.check_guidance(config(encoder="none", drop=0.0, **vectors), 3.0)
  vectors["embedding_drop"] = 0.0
  for encoder in ("none", "bytes"):
    with pytest.raises(UserError, match="text.drop and text.embedding_drop above 0"):
      encoders.check_guidance(config(encoder=encoder, drop=0.1, **vectors), 3.0)


def test_frozen_vectors_as_they_are():
  seqs, pooled = jax.random.normal(jax.random.key(0), (2, 2, 3, 4)), jnp.ones((2, 5))
  masks = jnp.array([[[True, False, False], [False] * 3], [[True] * 3, [True] * 3]])
  parts = (
    Cond(seq=seqs[0], mask=masks[0]),
    Cond(seq=seqs[1], mask=masks[1], pooled=pooled),
    Cond(pooled=2 * pooled),
  )
  cond, module = Cond(parts=parts), encoders.AsIs()
  params = module.init(jax.random.key(1), cond)
  found, null = module.apply(params, cond), params["params"]
  assert set(null) == {"null_0", "null_1"}
  first = jnp.stack([seqs[0, 0], null["null_0"]])
  np.testing.assert_array_equal(found.seq, jnp.concatenate([first, seqs[1]], axis=1))
  assert found.mask.all()
  np.testing.assert_array_equal(found.pooled, [[1] * 5 + [2] * 5] * 2)
  np.testing.assert_array_equal(
    module.apply(params, cond.null_like()).seq[0], jnp.concatenate([*null.values()])
  )
  other = (parts[0], Cond(seq=seqs[1, ..., :2], mask=masks[1]))
  with pytest.raises(UserError, match="vectors of different lengths"):
    module.init(jax.random.key(1), Cond(parts=other))
