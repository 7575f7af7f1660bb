"""Latents in place of pixels: encoded once, generated, decoded."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from core import parallel
from core.errors import UserError
from core.family import Codec, Given, Samples, Spec, sample_keys
from core.workdir import open_workdir
from data import source
from data.source import Dataset
from pipelines import build, codecs, draw, given, inputs, related, sample
from pipelines.opened import Opened
from tests.runs import on, picture_folder, started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder of pictures, and runs of two autoencoders of them."""
  place = tmp_path_factory.mktemp("codecs")
  folder = picture_folder(place / "pictures")
  started(on(folder, "configs/vae/fsq.py"), place / "fsq")
  return place


def generator(
  place: Path,
  file: str = "configs/diffusion/rectified_flow.py",
  **fields: object,
) -> ConfigDict:
  config = on(
    place / "pictures",
    file,
    **{"data.codec": str(place / "fsq"), "sample.threshold": "none"},
  )
  config.update_from_flattened_dict(fields)
  return config


def latents_of(config: ConfigDict) -> Dataset:
  return inputs.encoded(config, source.load(config.data, "train"), "train")


def test_latents_are_encoded_once_file_by_file(place, monkeypatch, capsys):
  monkeypatch.setattr(codecs, "ROWS", 10)
  config = generator(place)
  pixels, latents = source.load(config.data, "train"), latents_of(config)
  assert capsys.readouterr().err.count("encoding train") == 3
  count = len(pixels)
  assert 20 < len(latents) == count <= 24
  assert latents.captions(11) == pixels.captions(11)
  (folder,) = (place / "fsq" / "latents").iterdir()
  files = sorted(file.name for file in folder.glob("??????.npy"))
  assert files == ["000000.npy", "000001.npy", "000002.npy"]
  before = np.stack([latents[i].image for i in range(count)])
  (folder / "000001.npy").unlink()
  again = np.stack([latents_of(config)[i].image for i in range(count)])
  assert f"pictures 10 to 19 of {count}" in capsys.readouterr().err
  np.testing.assert_array_equal(before, again)
  # The first batch of training told their mean and deviation, pictures of the same.
  assert np.abs(before.mean((0, 1, 2))).max() < 1
  assert 0.3 < before.std() < 3
  # What the codec makes of the pictures themselves.
  opened = build.codec(config)
  x = np.stack([pixels.image(i) for i in range(count)]) * np.float32(2 / 255) - 1
  want = opened.codec.encode(opened.state, jnp.asarray(x))
  np.testing.assert_allclose(before, want, atol=1e-4)


def test_prepare_encodes_both_splits_on_all_devices(place, tmp_path, capsys):
  kept = shutil.ignore_patterns("latents")
  shutil.copytree(place / "fsq", tmp_path / "fsq", ignore=kept)
  config = generator(
    place,
    **{
      "data.codec": str(tmp_path / "fsq"),
      "data.eval_split": "all",
      "parallel.backend": "pmap",
    },
  )
  inputs.encode_splits(config, lambda split: source.load(config.data, split))
  said = capsys.readouterr().err
  assert said.count("encoding train") == said.count("encoding all") == 1
  many = latents_of(config)
  assert "encoding" not in capsys.readouterr().err
  one = latents_of(generator(place))  # on one device
  assert len(many) == len(one)
  for i in range(len(one)):
    np.testing.assert_allclose(many[i].image, one[i].image, atol=1e-5)


def test_a_prior_over_the_latents_of_a_vae(place, tmp_path):
  """Another family over them, in place of the VAE's own N(0, I)."""
  fields = {"vae.latent_dim": 0, "text.drop": 0.1}
  vae = on(place / "pictures", "configs/vae/vae.py", **fields)
  started(vae, tmp_path / "vae")
  config = generator(place, **{"data.codec": str(tmp_path / "vae")})
  family, run = build.family(config), parallel.make(config.parallel)
  batch = next(inputs.train_stream(config, source.load(config.data, "train"))(0))
  state = run.init(family.init, jax.random.key(0), batch)
  opened = build.codec(config)
  assert batch["x"].shape == (8, *opened.codec.spec.shape) == (8, 4, 4, 4)
  samples = sample.batch_sampler(config, family, run, 2)(state, 0, ["a", "b"], [0, 0])
  assert samples.images.shape == (2, 8, 8, 3)
  assert np.abs(samples.images).max() <= 1


def test_other_pictures_have_other_latents(place, tmp_path):
  config = generator(place)
  opened = build.codec(config)
  pixels = source.load(config.data, "train")
  name = codecs.identity(config, opened, pixels, "train")
  assert name == codecs.identity(config, opened, pixels, "train")
  assert name != codecs.identity(config, opened, pixels, "all")
  assert name != codecs.identity(config, opened._replace(key="1"), pixels, "train")
  # One picture of all is another.
  flipped = lambda one: one._replace(image=255 - one.image)  # noqa: E731
  read = lambda i: flipped(pixels[i]) if i == 7 else pixels[i]  # noqa: E731
  shape, captions = pixels.image(0).shape, pixels.captions
  others = Dataset(pixels.name, len(pixels), read, shape=shape, captions=captions)
  assert name != codecs.identity(config, opened, others, "train")
  config.data.path = str(picture_folder(tmp_path / "others", count=23))
  others = source.load(config.data, "train")
  assert name != codecs.identity(config, opened, others, "train")


@pytest.mark.parametrize("latents", ["latents", "tokens"])
def test_batches_and_samples(place, latents):
  files = {"latents": "diffusion/rectified_flow", "tokens": "autoregressive/decoder"}
  config = generator(place, f"configs/{files[latents]}.py", **{"data.latents": latents})
  spec = codecs.spec(config)
  batch = next(inputs.train_stream(config, source.load(config.data, "train"))(0))
  assert batch["x"].shape == (8, *spec.shape)
  assert batch["x"].dtype == spec.dtype
  assert build.example_batch(config)["x"].shape == (1, *spec.shape)
  if latents == "tokens":
    assert spec.vocab_size == 8 * 6 * 5
    assert batch["x"].max() < spec.vocab_size
  family, run = build.family(config), parallel.make(config.parallel)
  state = run.init(family.init, jax.random.key(0), batch)
  samples = sample.batch_sampler(config, family, run, 2)(state, 0, ["a", "b"], [0, 0])
  assert samples.images.shape == (2, 8, 8, 3)
  assert samples.frames.shape[1:] == (2, 8, 8, 3)
  assert np.abs(samples.images).max() <= 1
  np.testing.assert_allclose(samples.frames[-1], samples.images, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    ({"data.codec": "/nowhere"}, "no run in data.codec=/nowhere"),
    ({"data.latents": "token"}, "did you mean 'tokens'"),
    ({"data.codec": "", "data.latents": "tokens"}, "and data.codec names none"),
    ({"data.size": 4}, "has data.size=8, this config 4"),
    ({"sample.threshold": "static"}, "set it to none"),
    ({"data.flip": True}, "data.flip=True is for pixels"),
    ({"data.low_size": 4}, "data.low_size=4 is for pixels"),
    ({"sample.threshold": "dynamic"}, "set it to none"),
    ({"data.latents": "tokens"}, "draws real numbers, not tokens"),
  ],
)
def test_refusals(place, fields, sentence):
  with pytest.raises(UserError, match=sentence):
    build.family(generator(place, **fields))


def test_a_guide_is_for_diffusion(place):
  config = generator(place, "configs/autoregressive/mar.py", **{"sample.guide": "x"})
  with pytest.raises(UserError, match="sample.guide is for diffusion.ddpm"):
    related.guide(config)


def test_other_families_refuse_latents(place):
  config = on(
    place / "pictures",
    "configs/vae/vae.py",
    **{"data.codec": str(place / "fsq"), "sample.threshold": "none"},
  )
  with pytest.raises(UserError, match="vae.vae draws pixels, not latents"):
    build.family(config)


def test_the_weights_of_the_codec_are_pinned(place, tmp_path):
  config = generator(place)
  build.pin(config, tmp_path)
  build.pin(config, tmp_path)
  (tmp_path / "codec.json").write_text('{"sha256": "another"}')
  with pytest.raises(UserError, match="has other weights than when"):
    build.pin(config, tmp_path)


def test_damaged_latents_are_refused(place, tmp_path):
  with pytest.raises(UserError, match="is missing on this host; all must see it"):
    codecs.loaded(tmp_path / "000000.npy")
  (tmp_path / "000000.npy").write_bytes(b"\x93NUMPY")
  with pytest.raises(UserError, match="delete it, and it will be made again"):
    codecs.loaded(tmp_path / "000000.npy")


def test_a_run_without_codec_is_refused(place, tmp_path):
  config = on(place / "pictures", "configs/diffusion/rectified_flow.py")
  open_workdir(str(tmp_path), config)
  assert json.loads((tmp_path / "config.json").read_text())["family"]
  with pytest.raises(UserError, match="is no autoencoder"):
    build.family(generator(place, **{"data.codec": str(tmp_path)}))


def test_a_codec_older_than_a_field_is_refused(place, tmp_path):
  shutil.copytree(place / "fsq", tmp_path / "fsq")
  file = tmp_path / "fsq" / "config.json"
  old = json.loads(file.read_text())
  del old["vae"]["levels"]
  file.write_text(json.dumps(old))
  with pytest.raises(UserError, match="lacks the field 'levels'"):
    codecs.spec(generator(place, **{"data.codec": str(tmp_path / "fsq")}))


@pytest.mark.parametrize(
  ("file", "latents", "edit"),
  [
    ("autoregressive/decoder", "tokens", "complete"),
    ("autoregressive/maskgit", "tokens", "inpaint"),
    ("autoregressive/permuted", "tokens", "inpaint"),
    ("autoregressive/mar", "latents", "inpaint"),
  ],
)
def test_of_given_pictures_the_latents_are_edited(place, tmp_path, file, latents, edit):
  fields = {"data.latents": latents, "sample.edit": edit, "sample.per_prompt": 2}
  fields["model.patch"] = 1
  config = generator(place, f"configs/{file}.py", **fields)
  files = sorted((place / "pictures").glob("*.png"))[:2]
  mask = np.zeros((8, 8), np.uint8)
  mask[5, 2:4] = 255  # pixels of two places, in row 2
  Image.fromarray(mask).save(tmp_path / "mask.png")
  family, run = build.family(config), parallel.make(config.parallel)
  batch = next(inputs.train_stream(config, source.load(config.data, "train"))(0))
  state = run.init(family.init, jax.random.key(0), batch)
  white = "" if edit == "complete" else str(tmp_path / "mask.png")
  asked = [str(file) for file in files], white
  pictures = draw.request(config, family, run, dict, ["a"], *asked)(state, tmp_path)
  assert [p.name for p in pictures] == [
    f"{i:02d}_{edit}_{file.stem}_a.png" for i, file in enumerate(files)
  ]
  drawn = np.load(tmp_path / "samples.npz")["images"]

  opened = build.codec(config)
  images = given.read(config, asked[0]).repeat(2, axis=0)
  mask = np.broadcast_to(given.read_mask(config, asked[1]), (4, 8, 8, 1))
  known = jax.jit(opened.encoded)(
    opened.state, Given(jnp.asarray(images), jnp.asarray(mask))
  )
  want = jax.jit(opened.codec.encode)(opened.state, jnp.asarray(images))
  np.testing.assert_allclose(known.images, want, atol=1e-4)
  cond = inputs.conditions(config, ["a"] * 4, [0] * 4)
  keys = sample_keys(jax.random.key(config.sample.seed), 4)
  edited = jax.jit(family.edits[edit])(state, keys, cond, known).images
  kept = np.zeros((4, 4, 1), bool)
  if edit == "complete":
    kept[:2] = True
  else:
    kept[:] = True
    kept[2, 1] = False
    np.testing.assert_array_equal(known.mask[0] == 0, kept)
  kept = np.broadcast_to(kept, edited.shape)
  np.testing.assert_allclose(edited[kept], known.images[kept], atol=1e-6)
  assert (np.abs(edited - known.images)[~kept] > 1e-3).mean() > 0.5
  shown = jax.jit(opened.codec.decode)(opened.state, edited)
  np.testing.assert_allclose(drawn * (2 / 255) - 1, shown, atol=1.01 / 255)


def test_places_to_come_are_grey(place):
  config = generator(
    place, "configs/autoregressive/decoder.py", **{"data.latents": "tokens"}
  )
  opened = build.codec(config)
  tokens = jax.random.randint(jax.random.key(1), (2, 4, 4, 1), 0, 240)
  film = jnp.stack([tokens.at[:, 2:].set(-1), tokens])
  samples = Samples(tokens, film, jnp.ones(2, jnp.int32))
  images, frames, _ = jax.jit(opened.decoded)(opened.state, samples)
  np.testing.assert_array_equal(frames[1], images)
  np.testing.assert_array_equal(frames[0, :, :4], images[:, :4])
  assert (frames[0, :, 4:] == 0).all()
  assert (np.abs(images[:, 4:]) > 1e-3).mean() > 0.9


def test_a_code_without_places_is_drawn_as_a_whole():
  """Three coordinates of a picture of 2x2: none is of a square of pixels."""
  sums = lambda state, x: x.sum((1, 3))[:, None, :, None].repeat(2, 2)[:, :, :3]  # noqa: E731
  shown = lambda state, z: jnp.full((len(z), 2, 2, 1), 0.1) * z.sum()  # noqa: E731
  codec = Codec(Spec((1, 3, 1), jnp.int32, 9, False), sums, shown)
  opened = Opened(codec, (), "")
  given = Given(jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)))
  assert opened.encoded((), given).mask.tolist() == [[[[1], [1], [1]]]]
  tokens = jnp.array([[[[2], [3], [4]]]])
  film = jnp.stack([tokens.at[:, :, 1:].set(-1), tokens])
  found = opened.decoded((), Samples(tokens, film, jnp.ones(1, jnp.int32)))
  np.testing.assert_allclose(found.frames.mean((1, 2, 3, 4)), [0.6, 0.9], atol=1e-6)
