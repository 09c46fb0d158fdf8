"""The token counter: how long a prompt is for the text encoder, whatever else is written in it."""

from modules.prompt.attention import Emphasis, pieces
from modules.prompt.comments import strip_comments
from modules.prompt.composition import compose
from modules.prompt.networks import extract_networks
from modules.prompt.schedule import Timeline, schedule
from modules.prompt.tokens import Embeddings, Tokenizer, count


def count_tokens(
    prompt: str,
    tokenizer: Tokenizer,
    steps: int = 20,
    emphasis: Emphasis = "Original",
    backtrack: int = 20,
    embeddings: Embeddings | None = None,
    comments: bool = True,
) -> tuple[int, int]:
    """(tokens, room) of the longest text that the encoder will get: of all parts at all `steps`, without tags and
    comments."""
    text, _ = extract_networks(strip_comments(prompt) if comments else prompt)
    texts = {until.text for part, _ in compose(text) for until in schedule(part, Timeline(steps))}
    return max(count(pieces(text, emphasis), tokenizer, backtrack, embeddings) for text in texts)
