"""What a plugin fails with: a code and a text that the runtime reads (CNI spec, section 5)."""

from __future__ import annotations

VERSION, FIELD, CONTAINER, ENVIRONMENT, IO, DECODE, CONFIG, LATER = 1, 2, 3, 4, 5, 6, 7, 11
NOT_AVAILABLE, LIMITED = 50, 51  # of STATUS: no ADD can be served; some can
ADDRESS, DUPLICATE, MISMATCH, FAILED = 100, 101, 102, 199  # ours


class CniError(Exception):
    """A failure, told as JSON on the standard output."""

    def __init__(self, code: int, text: str, details: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.details = details

    def as_json(self, version: str) -> dict[str, object]:
        """What is written."""
        told: dict[str, object] = {"cniVersion": version, "code": self.code, "msg": str(self)}
        if self.details:
            told["details"] = self.details
        return told
