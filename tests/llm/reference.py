"""Log-probabilities of phrases by transformers, for comparison: `python reference.py MODEL < texts.json`.

Runs in the language model's environment. Reads [[before, text], ...] and prints the mean log-probability of each text's
tokens beyond those that it shares with the words before, from one plain forward pass in fp32.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str) -> None:
    """Read the texts, and print one number for each."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    print(json.dumps([mean_log_prob(model, tokenizer, *pair) for pair in json.load(sys.stdin)]))


@torch.inference_mode()
def mean_log_prob(model, tokenizer, before: str, text: str) -> float:
    """Of the tokens of `text` from the first that differs from `before`."""
    ids, start = tokenizer(text)["input_ids"], tokenizer(before)["input_ids"]
    first = 0
    while first < len(start) and ids[first] == start[first]:
        first += 1
    log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    picked = [log_probs[i - 1, ids[i]].item() for i in range(first, len(ids))]
    return sum(picked) / len(picked)


if __name__ == "__main__":
    main(sys.argv[1])
