"""Random batches for the benches, in the form that `bupo bench update` and the peers read."""
import json
import random

# The peers' padding id, whose embedding gradient torch leaves out: no batch holds it.
PADDING = 188


def token_ids(vocab, rows, length, rng):
    """`rows` sequences of `length` ids below `vocab`."""
    def token():
        while True:
            t = rng.randrange(1, vocab)
            if t != PADDING:
                return t
    return [[token() for _ in range(length)] for _ in range(rows)]


def write_update(path, vocab, rows=16, length=256, prompt=32):
    """Writes an update's batch with one random advantage a response; returns its ids."""
    rng = random.Random(0)
    ids = token_ids(vocab, rows, length, rng)
    mask = [[0] * prompt + [1] * (length - prompt) for _ in ids]
    advantages = [[rng.gauss(0, 1)] * length for _ in ids]
    path.write_text(json.dumps(dict(input_ids=ids, response_mask=mask, advantages=advantages, old_log_probs=None)))
    return ids


def write_samples(path, ids, prompt=32):
    """Writes sequences for an analysis: JSON lines, the response after the prompt."""
    path.write_text("".join(json.dumps(dict(input_ids=i, response_start=prompt)) + "\n" for i in ids))
