"""Which pictures with captions are kept, and the command line of the preparation."""

import importlib.util
import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from core.errors import UserError
from data import images, near, pairs, selection
from data.near import Signature
from data.selection import Kept, Rules
from tests.runs import ROOT
from tests.shards import encoded, sample

RNG = np.random.default_rng(0)


def noise(height=40, width=60, seed=0):
  """Smooth random colours."""
  small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
  return np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC))


def judged(parts, **rules):
  return selection.judge(parts, Rules(**rules), ("0.tar", 0), "0.tar/00")


PARTS = sample(encoded(noise()), "a caption", similarity=0.3)


@pytest.mark.parametrize(
  ("rules", "reason"),
  [
    ({"min_side": 41}, "too small"),
    ({"max_aspect": 1.49}, "too long"),
    ({"min_caption": 10}, "caption too short or long"),
    ({"max_caption": 8}, "caption too short or long"),
    ({"captions": ("other",)}, "no caption"),
    ({"captions": ("similarity",)}, "text unreadable"),
    ({"at_least": (("similarity", 0.31),)}, "similarity too low"),
    ({"at_most": (("similarity", 0.29),)}, "similarity too high"),
    ({"at_most": (("punsafe", 0.5),)}, "punsafe missing"),
    ({"at_most": (("caption", 0.5),)}, "caption missing"),
  ],
)
def test_a_filter_drops_what_is_just_outside(rules, reason):
  assert judged(PARTS, **rules) == reason


def test_what_is_just_inside_passes():
  bounds = {"at_least": (("similarity", 0.3),), "at_most": (("similarity", 0.3),)}
  rules = {"min_side": 40, "max_aspect": 1.5, "min_caption": 9, "max_caption": 9}
  assert isinstance(judged(PARTS, **rules, **bounds), Kept)


def test_damaged_and_missing_parts():
  assert judged({"txt": b"a"}) == "no picture"
  assert judged(PARTS | {"png": PARTS["png"][:90]}) == "picture unreadable"
  assert judged(PARTS | {"json": b"[]"}) == "text unreadable"
  assert judged(PARTS | {"txt": b"\xff"}) == "text unreadable"
  nan = PARTS | {"json": b'{"similarity": NaN}'}
  assert judged(nan, at_least=(("similarity", 0.0),)) == "similarity missing"
  assert judged({"jpg": encoded(noise(), "JPEG")}) == "no caption"


def test_what_is_stored():
  meta = {"captions": {"en": ["a", "longer"], "zh": "红"}, "similarity": 0.3}
  parts = {"png": encoded(noise()), "json": json.dumps(meta).encode()}
  kept = judged(parts, size=20, min_caption=2)
  assert kept.txt == b"longer"
  found = json.loads(kept.meta)
  assert found["captions"] == {"en": ["longer"]}
  assert found["key"] == kept.signature.digest
  assert found["source"] == "0.tar/00"
  assert [found[k] for k in ("width", "height")] == [30, 20]
  assert [found[f"original_{k}"] for k in ("width", "height")] == [60, 40]
  assert found["similarity"] == 0.3
  again = judged({"json": kept.meta, "png": kept.picture}, size=20)
  assert again.picture == kept.picture  # it is small already
  assert json.loads(again.meta)["original_width"] == 60


@pytest.mark.parametrize(
  ("kind", "suffix"),
  [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "png")],
)
def test_pictures_stay_in_their_format(kind, suffix):
  raw = encoded(noise(), kind)
  image = images.decode(raw)
  own, small, size = selection.stored(image, raw, 20)
  assert (own, size) == (suffix, (30, 20))
  expected = np.asarray(image.resize((30, 20), Image.LANCZOS), np.float64)
  found = np.asarray(Image.open(io.BytesIO(small)), np.float64)
  assert np.abs(found - expected).mean() < (0.5 if suffix == "png" else 8)
  for least in (0, 40):
    assert selection.stored(image, raw, least)[1] == raw


def test_the_digest_is_of_pixels():
  pixels = noise()
  one = near.signature_of(images.decode(encoded(pixels)))
  same = near.signature_of(images.decode(encoded(pixels, "BMP")))
  assert one == same
  changed = pixels.copy()
  changed[0, 0, 0] ^= 1
  other = near.signature_of(Image.fromarray(changed))
  assert other.digest != one.digest
  # The same bytes in another shape are another picture.
  turned = Image.fromarray(pixels.reshape(60, 40, 3))
  assert near.signature_of(turned).digest != one.digest
  grey = np.full((8, 8), 7, np.uint8)
  signatures = {near.signature_of(Image.fromarray(p))
                for p in (grey, np.repeat(grey[..., None], 3, 2))}  # fmt: skip
  assert len(signatures) == 1


def test_the_perceptual_hash_is_of_the_cosine_transform():
  image = Image.fromarray(noise())
  grey = np.asarray(image.convert("L").resize((32, 32), Image.LANCZOS), np.float64)
  waves = scipy.fft.dctn(grey, type=2)[1:9, 1:9].ravel()
  bits = "".join("1" if wave > np.median(waves) else "0" for wave in waves)
  assert near.perceptual_hash(image) == int(bits, 2)
  assert near.perceptual_hash(Image.new("RGB", (9, 9), "red")) == 0


def test_near_hashes_share_a_band():
  for bits in range(16):
    for _ in range(20):
      one = int(RNG.integers(0, 2**63)) * 2 + int(RNG.integers(0, 2))
      flips = RNG.choice(64, bits, replace=False).tolist()
      other = one ^ sum(1 << flip for flip in flips)
      first, second = (set(near.bands(h, bits)) for h in (one, other))
      assert first & second
      assert len(first) == bits + 1
  assert list(near.bands(2**64 - 1, 2)) == [(0, 2**21 - 1), (1, 2**21 - 1),
                                                 (2, 2**22 - 1)]  # fmt: skip


def signature(digest, perceptual=0, level=0, area=1):
  return Signature(digest, area, perceptual, bytes([level] * 192))


def test_of_near_pictures_the_largest_stays():
  small, large = signature("a"), signature("b", 0b111, 4, area=2)
  assert list(near.losers([small, large], 3)) == ["a"]
  assert list(near.losers([large, small, large], 3)) == ["a"]
  # A bit more, or a grey level, and both stay.
  assert not list(near.losers([small, signature("b", 0b1111, 0, area=2)], 3))
  assert not list(near.losers([small, signature("b", 0b111, 5, area=2)], 3))
  # Of equal size the first by its digest, in whatever order they come.
  equal = [signature(digest) for digest in "cab"]
  for order in itertools.permutations(equal):
    assert list(near.losers(order, 0)) == ["b", "c"]
  # a ~ b ~ c, though a and c are not near: the pairs decide.
  chain = [signature("a", 0), signature("b", 0b11), signature("c", 0b1111)]
  assert list(near.losers(chain, 2)) == ["b", "c"]


def test_copies_are_near_and_other_pictures_are_not():
  def signature_of(pixels, *how, **options):
    return near.signature_of(images.decode(encoded(pixels, *how, **options)))

  for seed in range(8):
    pixels = noise(96, 128, seed)
    half = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.LANCZOS))
    whole = signature_of(pixels)
    for copy in (
      signature_of(half), signature_of(pixels, "JPEG", quality=70),
      signature_of(half, "WEBP", quality=90),
    ):  # fmt: skip
      assert list(near.losers([whole, copy], 4)) == [
        max(whole, copy, key=lambda s: (-s.area, s.digest)).digest
      ]
    tinted = (pixels.astype(int) + (25, 0, -25)).clip(0, 255).astype(np.uint8)
    for other in (signature_of(noise(96, 128, seed + 50)), signature_of(tinted)):
      assert not list(near.losers([whole, other], 4))


def test_the_report_adds_up():
  counts = {"read": 10, "too small": 2, "passed": 8, "unique": 6, "near": 1, "kept": 5}
  found = selection.report(counts | {"shards": 2}, ["b", "a"])
  assert found["dropped"] == {"too small": 2, "duplicate": 2, "near duplicate": 1}
  assert found["kept"] == found["read"] - sum(found["dropped"].values())
  assert found["torn"] == ["a", "b"]
  assert pairs.table(found).splitlines()[-1] == "torn: b"


@pytest.mark.parametrize(
  ("flag", "told"),
  [
    ("--size=-1", "--size must be 0 or more, not -1"),
    ("--near_bits=16", "--near_bits must be -1 to 15"),
    ("--max_aspect=nan", "--max_aspect must be 1 or more, not nan"),
    ("--max_caption=0", "--max_caption must be 1 or more"),
    ("--at_least=similarity", "must be a field and a number"),
    ("--at_most=0.3", "must be a field and a number"),
    ("--format=zip", "invalid choice: 'zip'"),
  ],
)
def test_flags_out_of_range(flag, told):
  with pytest.raises(UserError, match=told):
    pairs.run(["--input=a", "--output=b", flag])


def test_without_beam_one_sentence_says_so():
  if importlib.util.find_spec("apache_beam"):
    pytest.skip("Apache Beam is installed")
  found = subprocess.run(
    [sys.executable, "-m", "data.pairs", "--input=a", "--output=b"],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert found.returncode == 2
  assert found.stderr.count("\n") == 1
  assert "needs Apache Beam" in found.stderr
