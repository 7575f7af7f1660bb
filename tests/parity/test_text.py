"""Text encoders against transformers' own, with random weights they share."""

import json

import emoji
import jax
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict
from tokenizers import (
  Tokenizer,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from core import weights
from data.openmoji import LANGUAGES
from data.openmoji import text as openmoji_text
from nets import clip_text
from nets.pretrained import bert, t5
from text import frozen, tokens

SIZES = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
TOKENS = np.random.default_rng(0).integers(3, 40, (3, 9))
TOKENS[:, 0] = 2
MASK = np.arange(9) < np.array([[9], [6], [3]])
TOKENS[np.arange(3), MASK.sum(1) - 1] = 49


def random(net: torch.nn.Module) -> torch.nn.Module:
  """Every parameter drawn, so that none is of no consequence."""
  torch.manual_seed(0)
  for p in net.parameters():
    torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    if p.ndim == 1:
      p.data += 0.5
  return net.eval()


def close(ours, theirs, where=None) -> None:
  theirs = theirs.detach().numpy()
  where = np.ones(len(theirs), bool) if where is None else where
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(
    np.asarray(ours)[where], theirs[where], rtol=0, atol=1e-4 * scale
  )


def compared(peer, directory, load, last=None, mask=MASK, **network) -> None:
  """The states of a saved model's tokens, and what it pools, are as `load` has them."""
  peer.save_pretrained(directory)
  net = load.network(directory, **network)
  params = load.load(directory, net)
  args = (TOKENS,) if mask is None else (TOKENS, mask)
  seq, pooled = jax.jit(net.apply)({"params": params}, *args)
  tokens = torch.tensor(TOKENS)
  where = None if mask is None else torch.tensor(mask).long()
  if isinstance(peer, transformers.T5ForConditionalGeneration):
    peer = peer.encoder
  want = peer(tokens, attention_mask=where)
  close(seq, want.last_hidden_state, mask)
  if last:
    close(pooled, want[last])
  else:
    states = want.last_hidden_state.detach().numpy()
    mean = [row[own].mean(0) for row, own in zip(states, mask, strict=True)]
    np.testing.assert_allclose(pooled, mean, rtol=0, atol=1e-4 * np.abs(mean).max())


CLIP = SIZES | {
  "vocab_size": 50,
  "max_position_embeddings": 12,
  "bos_token_id": 2,
  "eos_token_id": 49,
}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_text_tower(tmp_path, act) -> None:
  config = transformers.CLIPTextConfig(**CLIP, projection_dim=8, hidden_act=act)
  peer = random(transformers.CLIPTextModelWithProjection(config))
  compared(peer, tmp_path, clip_text, "text_embeds")


def test_clip_text_tower_alone(tmp_path) -> None:
  """As Stable Diffusion's directories have it, with the old number for the end."""
  config = transformers.CLIPTextConfig(**CLIP | {"eos_token_id": 2})
  peer = random(transformers.CLIPTextModel(config))
  compared(peer, tmp_path, clip_text, "pooler_output")


def test_siglip_text_tower(tmp_path) -> None:
  config = transformers.SiglipTextConfig(**CLIP, projection_size=8)
  peer = random(transformers.SiglipTextModel(config))
  compared(peer, tmp_path, clip_text, "pooler_output", mask=None)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_text_tower_of_the_whole_model(tmp_path, kind) -> None:
  own = {
    "text_config": CLIP,
    "vision_config": SIZES | {"image_size": 8, "patch_size": 4},
  }
  if kind == "clip":
    whole = random(
      transformers.CLIPModel(transformers.CLIPConfig(**own, projection_dim=8))
    )
    with torch.no_grad():
      want = whole.get_text_features(torch.tensor(TOKENS))
  else:
    whole = random(transformers.SiglipModel(transformers.SiglipConfig(**own)))
    with torch.no_grad():
      want = whole.get_text_features(torch.tensor(TOKENS))
  whole.save_pretrained(tmp_path)
  net = clip_text.network(tmp_path)
  params = clip_text.load(tmp_path, net)
  _, pooled = jax.jit(net.apply)({"params": params}, TOKENS)
  close(pooled, getattr(want, "pooler_output", want))


def test_bert(tmp_path) -> None:
  config = transformers.BertConfig(vocab_size=50, max_position_embeddings=12, **SIZES)
  compared(random(transformers.BertModel(config)), tmp_path, bert)


def test_xlm_r(tmp_path) -> None:
  """Saved with the head of another task, so the tensors have a prefix."""
  config = transformers.XLMRobertaConfig(
    vocab_size=50, max_position_embeddings=12, type_vocab_size=1, **SIZES
  )
  whole = random(transformers.XLMRobertaForMaskedLM(config))
  # Positions are counted over what is no padding, and padding is told by its number.
  tokens = np.where(MASK, TOKENS, config.pad_token_id)
  whole.save_pretrained(tmp_path)
  net = bert.network(tmp_path, pool="cls")
  params = bert.load(tmp_path, net)
  seq, pooled = jax.jit(net.apply)({"params": params}, tokens, MASK)
  mask = torch.tensor(MASK).long()
  want = whole.roberta(torch.tensor(tokens), attention_mask=mask).last_hidden_state
  close(seq, want, MASK)
  close(pooled, want[:, 0])


SIZES_OF_T5 = {
  "vocab_size": 50,
  "d_model": 16,
  "d_kv": 5,
  "d_ff": 24,
  "num_layers": 3,
  "num_heads": 3,
}
T5 = SIZES_OF_T5 | {
  # So few that the far ones are used too.
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 7,
}


@pytest.mark.parametrize(
  ("model", "config", "form"),
  [
    ("T5EncoderModel", "T5Config", "relu"),
    ("T5EncoderModel", "T5Config", "gated-gelu"),
    ("MT5EncoderModel", "MT5Config", "gated-gelu"),
    ("UMT5EncoderModel", "UMT5Config", "gated-gelu"),
    ("T5ForConditionalGeneration", "T5Config", "gated-gelu"),
  ],
)
def test_t5(tmp_path, model, config, form) -> None:
  config = getattr(transformers, config)(**T5, feed_forward_proj=form)
  compared(random(getattr(transformers, model)(config)), tmp_path, t5)


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_what_config_json_of_t5_leaves_out(tmp_path, kind) -> None:
  """As the first files of T5, which do not name their MLP."""
  made = {"t5": "T5Config", "mt5": "MT5Config", "umt5": "UMT5Config"}[kind]
  config = getattr(transformers, made)(**SIZES_OF_T5).to_dict()
  networks = []
  for content in (config, {"model_type": kind, **SIZES_OF_T5}):
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    networks.append(t5.network(tmp_path))
  assert networks[0] == networks[1]
  assert networks[0].gated == (kind != "t5")


def test_buckets_of_distances() -> None:
  theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
  length = 1200
  offset = torch.arange(length)[None] - torch.arange(length)[:, None]
  for count, far in ((32, 128), (8, 7), (32, 200)):
    want = theirs(offset, num_buckets=count, max_distance=far)
    np.testing.assert_array_equal(t5.buckets(length, count, far), want)


def test_shards_are_read_as_one(tmp_path) -> None:
  config = transformers.T5Config(**T5)
  peer = random(transformers.T5EncoderModel(config))
  peer.save_pretrained(tmp_path, max_shard_size="3KB")
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
  net = t5.network(tmp_path)
  params = t5.load(tmp_path, net)
  seq, _ = jax.jit(net.apply)({"params": params}, TOKENS, MASK)
  want = peer(torch.tensor(TOKENS), attention_mask=torch.tensor(MASK).long())
  close(seq, want.last_hidden_state, MASK)


# Real weights, real captions, real tokenizers.


def captions() -> list[str]:
  """Some in each of OpenMoji's languages, emoji, and text that is no text."""
  emoji.config.load_language(list(LANGUAGES))
  found = [own for own in emoji.EMOJI_DATA.values() if set(LANGUAGES) <= own.keys()]
  texts = [openmoji_text(own[code]) for own in found[::150] for code in LANGUAGES]
  texts += [symbol * 3 for symbol in list(emoji.EMOJI_DATA)[::150]]
  return [*texts, "half \ud83d of one", "\udcff", "A  tab\tand\nline", "x" * 300]


def test_minilm_on_captions() -> None:
  text = ConfigDict(
    {
      "frozen": ("minilm",),
      "max_tokens": 24,
      "frozen_dtype": "float32",
      "frozen_as_is": False,
    }
  )
  (encoder,) = frozen.encoders(text)
  folder = encoder._directory
  peer = transformers.BertModel.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  texts = [tokens.clean(caption) for caption in captions()[::5]]
  batch = tokenizer(
    texts, padding=True, truncation=True, max_length=24, return_tensors="pt"
  )
  want = peer(**batch).last_hidden_state.detach()
  mask = batch["attention_mask"].numpy().astype(bool)
  net = bert.network(folder)
  params = bert.load(folder, net)
  ids = np.asarray(batch["input_ids"], np.int32)
  seq, pooled = jax.jit(net.apply)({"params": params}, ids, mask)
  close(seq, want, mask)
  # What is kept is this in bfloat16, the vector of length 1.
  found = encoder.load()(texts)
  for one, row, own, mean in zip(found, want.numpy(), mask, pooled, strict=True):
    np.testing.assert_allclose(np.float32(one.seq), row[own], rtol=2**-8, atol=1e-4)
    unit = np.asarray(mean) / np.linalg.norm(mean)
    np.testing.assert_allclose(np.float32(one.pooled), unit, rtol=2**-8, atol=1e-4)


def unigram() -> Tokenizer:
  """As T5, XLM-R and SigLIP have it."""
  made = Tokenizer(models.Unigram())
  made.normalizer = normalizers.NFKC()
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  special = ["<pad>", "</s>", "<unk>"]
  trainer = trainers.UnigramTrainer(
    vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False
  )
  made.train_from_iterator(map(tokens.clean, captions()), trainer)
  made.post_processor = processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  return made


def byte_pairs() -> Tokenizer:
  """As CLIP has it."""
  made = Tokenizer(models.BPE())
  made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
  made.pre_tokenizer = pre_tokenizers.ByteLevel()
  special = ["<|endoftext|>", "<|startoftext|>"]
  trainer = trainers.BpeTrainer(
    vocab_size=600,
    special_tokens=special,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(map(tokens.clean, captions()), trainer)
  made.post_processor = processors.TemplateProcessing(
    single="<|startoftext|> $A <|endoftext|>",
    special_tokens=[(name, i) for i, name in enumerate(special)],
  )
  return made


@pytest.mark.parametrize("kind", ["minilm", "unigram", "byte_pairs"])
def test_tokenizers(tmp_path, kind) -> None:
  if kind == "minilm":
    place = weights.packaged(*frozen.PACKAGED["minilm"]).parent
    theirs = transformers.AutoTokenizer.from_pretrained(place)
  else:
    place, made = tmp_path, {"unigram": unigram, "byte_pairs": byte_pairs}[kind]()
    made.save(str(place / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
  texts = captions()
  assert len(texts) > 14 * 20
  want = theirs(list(map(tokens.clean, texts)), truncation=True, max_length=16)
  ours = tokens.load(place, 16)(texts)
  assert [ids.tolist() for ids in ours] == want["input_ids"]
