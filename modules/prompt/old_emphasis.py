"""How A1111 read weights in its first weeks, in September 2022: every token with brackets in it changes the weight of
all that follows, and is dropped; numbers, escapes and BREAK mean nothing. One chunk of 75 tokens is read, no more."""

from modules.prompt.attention import ROUND
from modules.prompt.tokens import ROOM, Chunk, Embedding, Embeddings, Tokenizer

_CHANGES = {"(": ROUND, ")": 1 / ROUND, "[": 1 / ROUND, "]": ROUND}


def chunk_of_2022(text: str, tokenizer: Tokenizer, weighted: bool = True, known: Embeddings | None = None) -> Chunk:
    """`weighted`: with the emphasis "None" brackets are text."""
    tokens: list[int] = []
    weights: list[float] = []
    used: list[Embedding] = []
    weight, position = 1.0, 0
    given = tokenizer.encode(text)
    while position < len(given) and len(tokens) < ROOM:
        change = _change(tokenizer.decode(given[position]) or "") if weighted else 1.0
        found = known.at(given, position) if known else None
        if change != 1.0:
            weight *= change
            position += 1
            continue
        if found:
            used.append(Embedding(len(tokens), found.name))
        added = [0] * found.vectors if found else [given[position]]
        position += len(found.tokens) if found else 1
        tokens += added
        weights += [weight] * len(added)
    tokens, weights = tokens[:ROOM], weights[:ROOM]
    padding = ROOM - len(tokens)
    return Chunk(
        (tokenizer.bos, *tokens, tokenizer.eos, *[tokenizer.pad] * padding),
        (1.0, *weights, 1.0, *[1.0] * padding),
        tuple(used),
    )


def _change(entry: str) -> float:
    """What an entry of the vocabulary, such as `((</w>`, multiplies weights by."""
    change = 1.0
    for bracket in entry:
        change *= _CHANGES.get(bracket, 1.0)
    return change
