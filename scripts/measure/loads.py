"""What an engine under observation is asked: rows of what to note it under, the prompts, and how to sample.

Tokens are numbers, so that no tokenizer is needed; no two prompts begin alike, so that none is remembered.
"""
import random

from vllm import SamplingParams

# So many tokens of prompts in one load at most: some seconds for a small model.
MOST_TOKENS = 120_000


def of(case):
    """The loads of a case, one after the other."""
    load = case.get("load", (64, 900, 16))
    if load != "growth":
        yield "served", [fixed(i, load[1]) for i in range(load[0])], sampling(load[2])
        return
    made, sequences = random.Random(7), case["args"]["max_num_seqs"]
    longest = case["args"]["max_model_len"] - 160
    # As in earlier rows.
    yield "served", [fixed(i, 900) for i in range(64)], sampling(16)
    # Every prompt a quarter longer than the last, one at a time: what is cached is always too small.
    length = 12
    while length < longest:
        yield f"alone_{length}", [prompt(made, length)], sampling(4)
        length = length * 5 // 4
    yield "alone", [prompt(made, longest)], sampling(4)
    # The longest contexts, as many as there is time for.
    count = max(4, min(sequences, MOST_TOKENS // longest))
    yield "longest", [prompt(made, longest) for _ in range(count)], sampling(64)
    yield "full", [prompt(made, 64) for _ in range(2 * sequences)], sampling(64)
    for burst in range(2):
        lengths = [min(longest, int(made.lognormvariate(6, 1.2)) + 1) for _ in range(2 * sequences)]
        while sum(lengths) > MOST_TOKENS:
            lengths.pop()
        yield f"mixed_{burst}", [prompt(made, length) for length in lengths], [sampling(made.randint(1, 128)) for _ in lengths]
    # What nothing of ours asks for: probabilities of the answer's tokens, then of the prompt's.
    yield "logprobs", [prompt(made, 200) for _ in range(sequences)], sampling(16, logprobs=5, repetition_penalty=1.1)
    yield "prompt_logprobs", [prompt(made, 1500) for _ in range(8)], sampling(4, prompt_logprobs=5)


def fixed(nth, length):
    return {"prompt_token_ids": [(7 * nth + at) % 1000 + 300 for at in range(length)]}


def prompt(made, length):
    return {"prompt_token_ids": [made.randint(300, 30_000) for _ in range(length)]}


def sampling(answer, **more):
    return SamplingParams(max_tokens=answer, ignore_eos=True, temperature=0.8, top_p=0.9, detokenize=False, **more)
