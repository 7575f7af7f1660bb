"""Directories of tiny random encoders, as Hugging Face keeps real ones."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from nets import clip_text
from nets.pretrained import bert, t5

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789红心颜色❤"]
BERT = {
  "model_type": "bert",
  "vocab_size": 100,
  "max_position_embeddings": 24,
  "type_vocab_size": 2,
  "hidden_size": 8,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 12,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
  "pad_token_id": 0,
}
T5 = {
  "model_type": "umt5",
  "vocab_size": 100,
  "d_model": 6,
  "d_kv": 3,
  "d_ff": 10,
  "num_layers": 1,
  "num_heads": 2,
  "feed_forward_proj": "gated-gelu",
  "relative_attention_num_buckets": 8,
  "layer_norm_epsilon": 1e-6,
}
SIGLIP = {
  "model_type": "siglip_text_model",
  "vocab_size": 100,
  "max_position_embeddings": 12,
  "hidden_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "intermediate_size": 12,
  "projection_size": 4,
}
PARTS = {"bert": bert, "umt5": t5, "siglip_text_model": clip_text}


def directory(folder: Path, config: dict, seed: int = 0) -> Path:
  """Writes config.json, tokenizer.json, tokenizer_config.json, model.safetensors."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  part = PARTS[config["model_type"]]
  net = part.network(folder)
  head = {"prefix": "", "head": "head"} if part is clip_text else {}
  save_file(tensors(net, part.names(net, **head), seed), folder / "model.safetensors")
  tokenizer().save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
  return folder


def tensors(net, names: dict, seed: int) -> dict[str, np.ndarray]:
  """Random ones of the shapes that the files have: [out, in]."""
  draw, found = np.random.default_rng(seed), {}
  tokens = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)["params"]
  for path, shape in traverse_util.flatten_dict(shapes, sep="/").items():
    array = draw.normal(size=shape.shape, scale=0.5).astype(np.float32)
    array += path.endswith("scale")
    parts = np.split(array, len(names[path]), axis=-1)
    for name, part in zip(names[path], parts, strict=True):
      found[name] = np.ascontiguousarray(part.T if path.endswith("kernel") else part)
  return found


def tokenizer() -> Tokenizer:
  """Single letters between [CLS] and [SEP], in lower case."""
  vocabulary = {token: i for i, token in enumerate([*MARKS, *LETTERS])}
  made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
  made.add_special_tokens(MARKS)
  made.normalizer = normalizers.Lowercase()
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
  )
  made.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  return made
