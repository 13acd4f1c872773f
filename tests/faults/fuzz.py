"""Fuzz everything that is read from a file: no traceback, no hang, no memory out of proportion.

python -m tests.faults.fuzz --minutes 10           all targets in turn
python -m tests.faults.fuzz --minutes 1 sweep      one target
python -m tests.faults.fuzz --minutes 60 --record  also adds the sums to tests/faults/fuzz.jsonl

An input that fails is saved in tests/faults/corpus/<target>/, from which the tests read it again.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
import traceback
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.fuzz_targets import CORPUS, Target, make_targets
from tests.faults.ledger import FUZZ_ROWS, record_fuzzing
from tests.faults.limits import MAX_BYTES

# ------------------------------------------------------------------------------------------ inputs


ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2**31, 2**63, -(2**70), 10**400, 1.5, 1e308, float("nan"), float("inf"),
    "", "x", "\x1b[31m", "\ud800", "9" * 50, [], [[]], [1, 2], {}, {"a": None}, [None] * 3,
)  # fmt: skip
TOKENS = (
    b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN", b"Infinity", b'"', b"\n", b"\\", b"\0",
    b"[" * 2000, b"{" * 2000, b"9" * 5000, b"true",
    b"=", b",", b"'", b"\xff\xfe", b"1979-05-27", b"0x7f",
)  # fmt: skip


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Return an input with some of its bytes or, if it is JSON, one of its values changed."""
    if draw.random() < 0.4:
        with suppress(ValueError, RecursionError):
            return edit_json(data, draw)
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        start = draw.randint(0, len(changed))
        stop = min(len(changed), start + draw.choice((1, 4, 30, 600)))
        action = draw.randrange(6)
        if action == 0:
            del changed[start:stop]
        elif action == 1:
            changed[start:stop] = changed[start:stop] * 2
        elif action == 2:
            changed[start:stop] = draw.randbytes(stop - start)
        elif action == 3:
            changed[start:stop] = draw.choice((b"\0", b"\xff", b"7")) * (stop - start)
        elif action == 4:
            changed[start:start] = draw.choice(TOKENS)
        else:
            del changed[start:]
    return bytes(changed)


def edit_json(data: bytes, draw: random.Random) -> bytes:
    """Return JSON, or one line of it, with one value at any depth exchanged or removed.

    Raises ValueError if it is no JSON object or list.
    """
    lines = data.splitlines()
    is_lines = len(lines) > 1 and lines[0].startswith(b"{") and lines[0].endswith(b"}")
    number = draw.randrange(len(lines)) if is_lines else 0
    tree = json.loads(lines[number] if is_lines else data)
    place: Any = tree
    while True:
        if not isinstance(place, dict | list) or not place:
            raise ValueError("nothing to edit")
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            break
        place = inner
    if draw.random() < 0.2:
        del place[key]
    else:
        place[key] = draw.choice(ODD_VALUES)
    text = json.dumps(tree).encode(errors="surrogatepass")
    return b"\n".join([*lines[:number], text, *lines[number + 1 :]]) if is_lines else text


# ------------------------------------------------------------------------------------ command line


def fuzz(target: Target, draw: random.Random, *, seconds: float, save_to: Path) -> tuple[int, int]:
    """Mutate and read inputs for some seconds; save those that fail; return (tried, failed)."""
    target.accept()  # what the first reading imports does not count as memory
    deadline, tried, failed = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline:
        data = draw.choice(target.originals)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data = mutate(data, draw)
        tried += 1
        try:
            check_memory(target, data)
        except Exception:
            failed += 1
            save_to.mkdir(parents=True, exist_ok=True)
            (save_to / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
            traceback.print_exc(limit=-3)
    return tried, failed


def check_memory(target: Target, data: bytes) -> None:
    """Read an input; raises AssertionError if that takes more memory than any file should."""
    tracemalloc.start(1)
    try:
        target.check(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES, f"{peak:,} bytes of memory for {len(data):,} bytes of input"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--seed", type=int, help="of the mutations; random if not given")
    parser.add_argument("--record", action="store_true", help=f"add the sums to {FUZZ_ROWS}")
    parser.add_argument("targets", nargs="*", help="names of targets; all if none is given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        targets = make_targets(Path(temporary))
        names = options.targets or list(targets)
        draw, num_failed = random.Random(options.seed), 0
        for name in names:
            seconds = 60 * options.minutes / len(names)
            tried, failed = fuzz(targets[name], draw, seconds=seconds, save_to=CORPUS / name)
            num_failed += failed
            if options.record:
                record_fuzzing(name, minutes=seconds / 60, tried=tried, failed=failed)
            print(f"{name}: {tried:,} inputs, {failed} failed", flush=True)
    sys.exit(num_failed > 0)


if __name__ == "__main__":
    main()
