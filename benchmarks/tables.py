"""Tables as the README has them."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first row its head."""
    head, *body = ("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body, ""])
