"""Vectors of pictures as a condition, and codecs of what other codecs make."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import parallel
from core.errors import UserError
from core.family import Codec, Family, Samples, Spec, State, sample_keys
from data import source
from data.batches import batch_at
from eval import vectors
from pipelines import (
  build,
  draw,
  dual,
  embeddings,
  given,
  inputs,
  pictures,
  similarity,
  system,
)
from pipelines.opened import Opened, chained
from tests.runs import load_config, on, picture_folder, started
from tests.test_systems import drawing, state
from text import encoders
from text.cond import Cond


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder of pictures, and the run of a dual encoder of them."""
  place = tmp_path_factory.mktemp("embeddings")
  folder = picture_folder(place / "pictures")
  started(on(folder, "configs/text/clip.py"), place / "clip")
  return place


def decoder(place: Path, **fields: object) -> ConfigDict:
  own = {"text.embedding": str(place / "clip"), **fields}
  return on(place / "pictures", "configs/diffusion/ddpm.py", **own)


def test_text_and_vector_are_dropped_on_their_own() -> None:
  n = 20_000
  keys = sample_keys(jax.random.key(0), n)
  cond = Cond(label=jnp.zeros(n, jnp.int32), embedding=jnp.ones((n, 3)))
  kept = cond.drop(keys, 0.5, embedding=0.1)
  text, vector = kept.label == 0, (kept.embedding == 1).all(1)
  np.testing.assert_array_equal((kept.embedding == 0).all(1), ~vector)
  np.testing.assert_allclose(
    [text.mean(), vector.mean(), (text & vector).mean()], [0.5, 0.9, 0.45], atol=0.02
  )
  assert (cond.null_like().embedding == 0).all()


def test_a_vector_is_added_to_pooled_and_makes_four_items() -> None:
  text = load_config("configs/diffusion/ddpm.py").text
  plain = encoders.make(text)
  text.embedding = "somewhere"
  net = encoders.make(text)
  tokens = jnp.array([[5, 6, 0], [7, 0, 0]])
  cond = Cond(
    tokens=tokens, mask=tokens > 0, embedding=jnp.array([[1.0, 2, 3], [0, 0, 0]])
  )
  params = net.init(jax.random.key(0), cond)["params"]
  out = net.apply({"params": params}, cond)
  alone = plain.apply({"params": params["encoder"]}, cond.replace(embedding=None))
  np.testing.assert_array_equal(out.seq[:, :3], alone.seq)
  np.testing.assert_array_equal(out.mask[:, :3], alone.mask)
  np.testing.assert_array_equal(out.mask[:, 3:], [[True] * 4, [False] * 4])
  added = cond.embedding @ params["pooled"]["kernel"]
  np.testing.assert_allclose(out.pooled, alone.pooled + added, atol=1e-6)
  items = (cond.embedding @ params["items"]["kernel"]).reshape(2, 4, -1)
  np.testing.assert_allclose(out.seq[:, 3:], items, atol=1e-6)


def test_examples_carry_the_vectors_of_their_pictures(place: Path) -> None:
  config = decoder(place)
  pixels = source.load(config.data, "train")
  data = inputs.encoded(config, pixels, "train")
  cond = encoders.raw(config.text)
  batch = batch_at(data, cond, seed=1, step=0, batch_size=4, languages=("en",))
  opened = build.embedder(config)
  expected = opened.codec.encode(opened.state, jnp.asarray(batch["x"]))
  found = batch["cond"].embedding
  np.testing.assert_allclose(found, expected[:, 0, 0], atol=1e-5)
  dim = found.shape[1]
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.sqrt(dim), rtol=1e-5)
  # The same of pictures that a user gives; none is a vector of zeros.
  images = pictures.from_uint8([pixels.image(i) for i in range(2)])
  asked = inputs.conditions(config, ["a", "b"], [0, 0], images).embedding
  np.testing.assert_allclose(asked[1], data[1].embedding, atol=1e-5)
  assert (inputs.conditions(config, ["a"], [0]).embedding == 0).all()


def prior(place: Path, **fields: object) -> ConfigDict:
  own = {
    "data.codec": str(place / "clip"),
    "text.embedding": str(place / "clip"),
    "text.embedding_of_caption": True,
    "sample.threshold": "none",
    "model.net": "prior",
  }
  return on(place / "pictures", "configs/diffusion/ddpm.py", **own | fields)


def test_a_prior_reads_the_vector_of_the_caption(place: Path) -> None:
  """As its own dual encoder has it; of no caption, zeros."""
  config = prior(place)
  data = source.load(config.data, "train")
  judge = dual.load(str(place / "clip"), config.parallel)
  stream = inputs.train_stream(config, data)
  batch = next(stream(0))
  spoken = sorted({c for i in range(len(data)) for c in data.captions(i)["en"]})
  raw = jax.tree.map(jnp.asarray, judge.conditions(spoken))
  rows = judge.embed_texts(judge.params, raw)
  rows = np.asarray(rows) * np.sqrt(rows.shape[1])
  asked = inputs.conditions(config, ["", *spoken], [0] * (len(spoken) + 1))
  np.testing.assert_allclose(asked.embedding[1:], rows, atol=1e-5)
  assert not asked.embedding[0].any()
  tokens = {bytes(np.asarray(t)): i for i, t in enumerate(asked.tokens)}
  for row, vector in zip(batch["cond"].tokens, batch["cond"].embedding, strict=True):
    np.testing.assert_array_equal(vector, asked.embedding[tokens[bytes(row)]])


def test_a_dual_encoder_of_classes_has_no_vectors_of_captions(place: Path) -> None:
  config = prior(place)
  opened, run = build.embedder(config), parallel.make(config.parallel)
  config.text.encoder = "label"
  with pytest.raises(UserError, match="knows classes and no captions"):
    embeddings.of_captions(config.text, opened, run, None, ["a"])


def test_the_vector_of_a_caption_is_dropped_with_it() -> None:
  text = load_config("configs/diffusion/ddpm.py").text
  text.drop, text.embedding, text.embedding_of_caption = 0.5, "somewhere", True
  cond = Cond(label=jnp.zeros(100, jnp.int32), embedding=jnp.ones((100, 3)))
  kept = encoders.dropped(text, cond, sample_keys(jax.random.key(0), 100))
  assert 30 < (kept.label == 0).sum() < 70
  np.testing.assert_array_equal((kept.embedding == 1).all(1), kept.label == 0)


def test_a_prior_is_told_how_well_captions_fit(place: Path) -> None:
  """By the rank of the dot product among all pairs of the data."""
  config = prior(place, **{"text.similarity_cells": 4})
  data = source.load(config.data, "train")
  batch = next(inputs.train_stream(config, data)(0))
  true = inputs.encoded(config, data, "train")
  caption = {i: data.captions(i)["en"] for i in range(len(data))}
  asked = {
    c: inputs.conditions(config, [c], [0]) for own in caption.values() for c in own
  }
  products = [
    true[i].image.ravel() @ asked[c].embedding[0]
    for i, own in caption.items()
    for c in own
  ]
  texts = batch["cond"].embedding
  own = np.sum(batch["x"].reshape(texts.shape) * texts, axis=1)
  ranks = [np.mean(np.asarray(products) < x - 1e-4) for x in own]
  # Its own pair may count as smaller, by rounding.
  np.testing.assert_allclose(batch["cond"].similarity, ranks, atol=1.01 / len(products))
  assert len(set(ranks)) > 2
  assert asked[caption[0][0]].similarity.tolist() == [-1]


def test_what_is_drawn_fits_better_than_half_of_the_data() -> None:
  keys, cond = sample_keys(jax.random.key(0), 200), Cond(embedding=jnp.ones((200, 3)))
  assert similarity.upper_half(keys, cond) is cond
  found = similarity.upper_half(keys, similarity.unknown(cond, 200)).similarity
  assert found.min() >= 0.5
  np.testing.assert_allclose(np.histogram(found, 4, (0.5, 1))[0], 50, atol=20)
  alone = similarity.upper_half(keys[7:8], similarity.unknown(cond, 1)).similarity
  np.testing.assert_array_equal(alone, found[7:8])


def test_a_similarity_is_an_item_of_its_cell() -> None:
  text = load_config("configs/diffusion/ddpm.py").text
  text.encoder, text.embedding, text.similarity_cells = "none", "somewhere", 4
  net, ranks = encoders.make(text), jnp.array([0.0, 0.24, 0.25, 1.0, -1.0])
  cond = Cond(embedding=jnp.ones((5, 3)), similarity=ranks)
  params = net.init(jax.random.key(0), cond)["params"]
  out = net.apply({"params": params}, cond)
  table = params["similarity"]["embedding"]
  np.testing.assert_array_equal(out.seq[:, 4], table[jnp.array([1, 1, 2, 4, 0])])
  np.testing.assert_array_equal(out.mask[:, 4], [True] * 4 + [False])
  null = cond.null_like()
  assert (null.similarity == -1).all()


def test_of_two_vectors_the_one_nearer_to_the_caption_is_kept() -> None:
  def draw(keys: jax.Array, cond: Cond, n: int) -> Samples:
    images = jax.vmap(lambda k: jax.random.normal(k, (1, 1, 4)))(keys)
    return Samples(images, images[None], jnp.full(n, 3))

  keys = sample_keys(jax.random.key(0), 5)
  cond = Cond(embedding=jax.random.normal(jax.random.key(1), (5, 4)))
  found = embeddings.nearest(draw, keys, cond, 5, 2)
  for i in range(5):
    own = [jax.random.normal(jax.random.fold_in(keys[i], j), (4,)) for j in range(2)]
    best = max(own, key=lambda z: float(z @ cond.embedding[i]))
    np.testing.assert_allclose(found.images[i, 0, 0], best, rtol=1e-6)
    np.testing.assert_array_equal(found.frames[0, i], found.images[i])
  assert found.nfe.tolist() == [6] * 5


def test_what_draws_like_a_picture_needs_one(place: Path) -> None:
  config = decoder(place)
  family, run = build.family(config), parallel.make(config.parallel)
  load = lambda: source.load(config.data, "train")  # noqa: E731
  with pytest.raises(UserError, match="draws what is like pictures"):
    draw.request(config, family, run, load, ["a"], [], "")


def like_vectors() -> Family:
  """Draws pictures that show the vector, the noise, and whether there is a caption."""

  def sample(state: State, rng: jax.Array, cond: Cond, n: int) -> Samples:
    noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))(rng)
    shown = [cond.embedding, noise, cond.mask.any(1, keepdims=True)]
    images = jnp.concatenate(shown, axis=1)[:, None, None]
    return Samples(images, images[None], jnp.ones(n, jnp.int32))

  return drawing(1, 1)._replace(sample=sample)


def test_what_lies_between_two_pictures_has_their_vectors_and_one_noise(
  place: Path,
) -> None:
  """Half way is (a + b) / (2 cos(theta / 2)); without --prompt there is no caption."""
  fields = {"sample.edit": "interpolate", "sample.per_prompt": 3}
  config = decoder(place, **fields)
  run, pixels = parallel.make(config.parallel), source.load(config.data, "train")
  files = [str(place / "pictures" / f"{i:03d}.png") for i in range(2)]
  asked, load = (config, like_vectors(), run, [""], [0]), lambda: pixels
  found = given.drawer(*asked, files, "", load)(state()).images.reshape(3, -1)
  opened = build.embedder(config)
  pair = jnp.asarray(given.read(config, files))
  a, b = np.asarray(opened.codec.encode(opened.state, pair)).reshape(2, -1)
  half = np.arccos(a @ b / np.sqrt(a @ a * (b @ b))) / 2
  expected = np.stack([a, (a + b) / (2 * np.cos(half)), b])
  np.testing.assert_allclose(found[:, :-2], expected, atol=1e-4)
  noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (1,))
  np.testing.assert_allclose(found[:, -2], np.repeat(noise, 3), rtol=1e-6)
  with pytest.raises(UserError, match="here are 1 pictures, "):
    given.drawer(*asked, files[:1], "", load)
  config.sample.edit, config.sample.per_prompt = "image_to_image", 1
  varied = given.drawer(*asked, files, "", load)(state()).images.reshape(2, -1)
  np.testing.assert_allclose(varied[:, :-2], [a, b], atol=1e-4)
  assert varied[0, -2] != varied[1, -2]
  config.sample.edit = "invert"
  with pytest.raises(UserError, match="set it to 'image_to_image' or 'interpolate'"):
    given.drawer(*asked, files, "", load)


def test_variations_of_a_picture_have_no_caption(
  place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config, asked = decoder(place, **{"sample.prompts": ("red heart",)}), []
  monkeypatch.setattr(given, "drawer", lambda *args: asked.append(args[3]))
  run, load = parallel.make(config.parallel), lambda: source.load(config.data, "train")
  for prompts in ([], ["a"]):
    draw.request(config, like_vectors(), run, load, prompts, ["some.png"], "")
  assert asked == [[""], ["a"]]


def test_what_draws_vectors_is_no_use_alone(place: Path) -> None:
  fields = {
    "data.codec": str(place / "clip"),
    "sample.threshold": "none",
    "model.net": "prior",
  }
  config = on(place / "pictures", "configs/diffusion/ddpm.py", **fields)
  family, run = build.family(config), parallel.make(config.parallel)
  load = lambda: source.load(config.data, "train")  # noqa: E731
  assert draw.preview(config, family, run, load, place / "samples")(None) == {}
  with pytest.raises(UserError, match="draws vectors, not pictures"):
    draw.request(config, family, run, load, ["a"], [], "")


def test_vectors_are_scored_by_their_angle_to_the_right_ones(place: Path) -> None:
  """A prior that draws (1, 0, 0, ...) has the mean of the true first numbers."""
  fields = {
    "data.codec": str(place / "clip"),
    "sample.threshold": "none",
    "eval.num_images": 10,
  }
  config = on(place / "pictures", "configs/diffusion/ddpm.py", **fields)
  run, pixels = parallel.make(config.parallel), source.load(config.data, "train")
  true = inputs.encoded(config, pixels, "train")

  def sample(state: State, rng: jax.Array, cond: Cond, n: int) -> Samples:
    images = jnp.zeros((n, *true[0].image.shape)).at[..., 0].set(2.0)
    return Samples(images, images[None], jnp.ones(n, jnp.int32))

  family = drawing(1, 1)._replace(sample=sample)
  found = vectors.VectorScores(config, family, run, pixels)(state())
  values = {record["metric"]: record["value"] for record in found}
  rows = np.stack([true[i].image.ravel() for i in range(10)])
  expected = np.mean(rows[:, 0] / np.linalg.norm(rows, axis=1))
  np.testing.assert_allclose(values["cosine"], expected, rtol=1e-5)
  np.testing.assert_allclose(values["cosine_shuffled"], expected, rtol=1e-5)
  assert vectors.cosine(np.eye(2), np.array([[3.0, 0], [0, -1]])) == 0
  config.data.codec = ""
  with pytest.raises(UserError, match="is for priors"):
    vectors.VectorScores(config, family, run, pixels)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data.flip": True}, "set data.flip to False"),
    ({"data.low_size": 4}, "is of whole pictures"),
    ({"family": "vae.vae"}, "is for diffusion.ddpm"),
    ({"text.embedding": "nowhere"}, "no run in"),
    ({"text.embedding_of_caption": True, "text.embedding": ""}, "name its workdir in"),
    ({"sample.candidates": 2}, "set it to 1"),
    ({"text.similarity_cells": 8}, "set it to 0"),
  ],
)
def test_wrong_settings_are_refused(
  place: Path, fields: dict[str, object], message: str
) -> None:
  with pytest.raises(UserError, match=message):
    build.embedder(decoder(place, **fields))


def test_a_codec_of_a_codec_is_both_in_turn() -> None:
  double = Codec(
    Spec((2, 2, 1), pixels=False),
    lambda s, x: s * x,
    lambda s, z: z / s,
    pictures=False,
  )
  shifted = Codec(
    Spec((4,), pixels=False),
    lambda s, z: z.reshape(-1, 4) + s,
    lambda s, c: (c - s).reshape(-1, 2, 2, 1),
  )
  both = chained(Opened(double, 2.0, "a"), Opened(shifted, 10.0, "b"))
  x = jnp.arange(4.0).reshape(1, 2, 2, 1)
  code = both.codec.encode(both.state, x)
  assert code.tolist() == [[10, 12, 14, 16]]
  np.testing.assert_array_equal(both.codec.decode(both.state, code), x)
  assert both.codec.spec.shape == (4,)
  assert not both.codec.pictures
  assert both.key not in ("a", "b")


def test_a_prior_gives_its_vector_to_the_next_stage() -> None:
  """And shows no frames; what it draws is decoded to a vector first."""

  def like(state: object, rng: jax.Array, cond: Cond, n: int) -> Samples:
    images = jnp.broadcast_to(cond.embedding[:, :1, None, None], (n, 2, 2, 1))
    return Samples(images, images[None], jnp.full(n, 2))

  # A map of 1x1 with one channel, times ten.
  codec = Codec(Spec((1, 1, 1)), None, lambda s, z: s.ema["weight"] * z, pictures=False)
  prior = drawing(1, 3)
  parts = {
    "prior": system.Stage(prior, Opened(codec, None, "")),
    "decoder": system.Stage(prior._replace(sample=like), None),
  }
  weights = {
    "prior": system.Weights(state(weight=jnp.float32(1)), state(weight=10.0)),
    "decoder": system.Weights(state(), None),
  }
  keys = sample_keys(jax.random.key(1), 2)
  cond = {"prior": Cond(), "decoder": Cond(embedding=jnp.zeros((2, 1)))}
  drawn = system.composed(parts).sample(state(**weights), keys, cond, 2)
  for i in range(2):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), i), 0)
    vector = 10 * jax.random.normal(key, (1, 1, 1))
    np.testing.assert_allclose(drawn.images[i], jnp.full((2, 2, 1), vector[0, 0, 0]))
  assert drawn.frames.shape == (1, 2, 2, 2, 1)
  assert drawn.nfe.tolist() == [5, 5]
