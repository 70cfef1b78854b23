"""What a server is started with: its limits, and the tokens that clients must show."""

import string
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm2comp.errors import UserError

TOKEN_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._~+/=")
"""Characters of a bearer token (RFC 6750)."""
LONGEST = 1_000_000
"""Most seconds of a limit. Sockets count milliseconds in 31 bits, which is twice as long."""


@dataclass(frozen=True)
class Limits:
    """How much clients may ask for.

    Attributes:
        body: most bytes of the body of a request.
        texts: most texts of a request.
        characters: most characters of a text. The model reads no more than its maximum length, so
            a longer text is a mistake.
        waiting: most texts that wait for each model; a request that would exceed it gets 429.
        seconds: from the first byte of a request to the last byte of its response.
        idle_seconds: for which an idle connection, and one whose request does not come, stay open.

    Raises:
        UserError: if no request would fit into the queue, or a time is not above 0 and at most
            `LONGEST`.
    """

    body: int = 8_000_000
    texts: int = 2048
    characters: int = 200_000
    waiting: int = 4096
    seconds: float = 60
    idle_seconds: float = 5

    def __post_init__(self) -> None:
        if self.waiting < self.texts:
            raise UserError(
                f"--max-waiting {self.waiting} is below --max-texts {self.texts}, so the largest "
                "requests would never be accepted; raise the one or lower the other"
            )
        for option, seconds in (("timeout", self.seconds), ("keep-alive", self.idle_seconds)):
            if not 0 < seconds <= LONGEST:  # NaN is neither
                raise UserError(
                    f"--{option} {seconds:g} is no time that a server can wait; give seconds above "
                    f"0 and at most {LONGEST:,}"
                )


def read_tokens(file: Path) -> tuple[bytes, ...]:
    """Return the bearer tokens of a file: one per line; blank lines and `#` lines are skipped.

    Raises:
        UserError: if the file has no token, or a line is none. The message does not show the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: it is not UTF-8; write one token per line") from error
    tokens = []
    for number, line in enumerate(lines, start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not TOKEN_CHARACTERS.issuperset(token):
            raise UserError(
                f"{file}, line {number}: a token has only letters, digits and -._~+/=; make one "
                "with: openssl rand -hex 32"
            )
        tokens.append(token.encode())
    if not tokens:
        raise UserError(f"{file}: it has no token; write one per line")
    return tuple(tokens)


def require_installed() -> None:
    """Check that the extra `serve` is installed.

    Raises:
        UserError: if something is missing.
    """
    if not all(map(find_spec, ("fastapi", "httptools", "prometheus_client", "uvicorn"))):
        raise UserError("a server needs fastapi and uvicorn: pip install 'llm2comp[serve]'")
