# SPDX-License-Identifier: Apache-2.0
"""Answer a multiple-choice question with one forward pass.

The choices are lettered, and the model is asked for the letter. Nothing is generated: the program
reads the logits that the model gives to each letter as the next token, and the highest one wins.

Input:  {"question": "Capital of France?", "choices": ["Oslo", "Paris", "Bern", "Rome"]}
Output: {"choice": 1, "letter": "B", "scores": [four log-probabilities], "prompt_tokens": 48}

A score is the natural logarithm of the letter's share among the letters, so that the scores of a
question compare with those of another.
"""

import math
import string
from collections.abc import Iterable

from inferlet import model, session
from inferlet.eta import (
    Channel,
    ForwardPass,
    KvGeometry,
    Pipeline,
    RsWorkingSet,
    WorkingSet,
    dtype,
    gather,
    intrinsics,
    kv_page_size,
)


def lettered(question: str, choices: list[str]) -> str:
    """Return the prompt, one line: the question, each choice behind its letter, and the cue for a letter."""
    options = [f"{letter} {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
    return " ".join([question, *options]) + ":"


def letter_tokens(count: int) -> list[int]:
    """Return the token of each letter; every tokenizer has the single letters as single tokens."""
    tokens = []
    for letter in string.ascii_uppercase[:count]:
        encoded = model.encode(letter)
        if len(encoded) != 1:
            raise ValueError(f"the letter {letter} is {len(encoded)} tokens for this model")
        tokens += encoded
    return tokens


def numbers(values: Iterable[int]) -> Channel:
    """Return a channel that is seeded with unsigned numbers, the way the geometry wants them."""
    return Channel.from_(list(values), dtype.u32)


def geometry(count: int) -> KvGeometry:
    """Say where ``count`` tokens go: one after the other, into the first pages of an empty cache."""
    page = kv_page_size()
    pages = math.ceil(count / page)
    return KvGeometry(
        kv_len=numbers([count]),
        pages=numbers(range(pages)),
        page_indptr=numbers([0, pages]),
        w_slot=numbers(position // page for position in range(count)),
        w_off=numbers(position % page for position in range(count)),
        positions=numbers(range(count)),
    )


async def letter_logits(prompt: list[int], tokens: list[int]) -> list[float]:
    """Return the logits of ``tokens`` after the last token of ``prompt``."""
    # The cache and the state must outlive the pass, so they are variables here.
    cache, state = WorkingSet(), RsWorkingSet()
    cache.reserve(math.ceil(len(prompt) / kv_page_size()))
    forward = ForwardPass()
    forward.embed(Channel.from_(prompt, dtype.i32), numbers([0, len(prompt)]))
    # Models with linear attention keep a recurrent state beside the cache; others ignore it.
    forward.bind_state(cache, geometry(len(prompt)), [state])
    wanted = numbers(tokens)
    found = Channel([len(tokens)], dtype.f32)

    @forward.epilogue
    def _() -> None:
        # Runs on the device: only the few logits that count leave it, not the whole vocabulary.
        found.put(gather(intrinsics.logits(), wanted.take()))

    pipeline = Pipeline()
    forward.submit(pipeline)
    try:
        return await found.take_host()
    finally:
        pipeline.close()


def log_softmax(logits: list[float]) -> list[float]:
    """Normalise logits over the choices; the maximum is taken out first, so that exp cannot overflow."""
    highest = max(logits)
    total = math.log(sum(math.exp(logit - highest) for logit in logits))
    return [logit - highest - total for logit in logits]


async def main(input: dict) -> dict:
    """Score the choices and return the best one."""
    question, choices = input["question"], input["choices"]
    if not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise ValueError(f"2 to 26 choices are possible, not {len(choices)}")
    prompt = model.encode(lettered(question, choices))
    session.send(f"scoring {len(choices)} choices")
    scores = log_softmax(await letter_logits(prompt, letter_tokens(len(choices))))
    choice = scores.index(max(scores))
    return {
        "choice": choice,
        "letter": string.ascii_uppercase[choice],
        "scores": [round(score, 6) for score in scores],
        "prompt_tokens": len(prompt),
    }
