"""A model of a disk: what is left of recorded file operations after a power cut.

A file's content is safe once the file is synced, and its name once its folder is.
"""

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("<5q")


class Record(NamedTuple):
    """A recorded operation: its letter, a path, a second path or data, and two numbers."""

    operation: str
    path: Path
    data: bytes
    inode: int
    number: int  # an offset, a size, or whether the file was emptied


@dataclass
class File:
    """A file's content, now and on the disk."""

    now: bytearray
    safe: bytes = b""


@dataclass
class Folder:
    """A folder's entries, now and on the disk."""

    now: dict[str, "File | Folder"] = field(default_factory=dict)
    safe: dict[str, "File | Folder"] = field(default_factory=dict)


def read_trace(path: Path) -> list[Record]:
    """Return the recorded changes and syncs; openings without a change are left out."""
    data, records, place = path.read_bytes(), [], 0
    while place < len(data):
        operation, size_a, size_b, inode, number = HEAD.unpack_from(data, place)
        place += HEAD.size
        first, place = data[place : place + size_a], place + size_a
        second, place = data[place : place + size_b], place + size_b
        if chr(operation) != "p":
            records.append(Record(chr(operation), Path(first.decode()), second, inode, number))
    return records


class Disk:
    """A disk that begins with the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = load(folder)
        self.by_inode: dict[int, File] = {}

    def parent(self, path: Path) -> Folder:
        """Return the folder that holds a path."""
        node = self.root
        for part in path.parts[:-1]:
            found = node.now[part]
            assert isinstance(found, Folder), path
            node = found
        return node

    def find(self, path: Path) -> "File | Folder":
        """Return the file or folder at a path."""
        return self.parent(path).now[path.name] if path.parts else self.root

    def file(self, record: Record, path: Path) -> File:
        """Return the file that a record is about, also if it was renamed since it was opened."""
        if record.inode not in self.by_inode:
            found = self.find(path)
            assert isinstance(found, File), path
            self.by_inode[record.inode] = found
        return self.by_inode[record.inode]

    def apply(self, record: Record, *, root: Path) -> None:
        """Carry out an operation that was recorded below `root`."""
        path, operation = record.path.relative_to(root), record.operation
        if operation == "o":
            self.open(record, path)
        elif operation == "w":
            content = self.file(record, path).now
            content.extend(bytes(max(0, record.number - len(content))))
            content[record.number : record.number + len(record.data)] = record.data
        elif operation == "t":
            content = self.file(record, path).now
            content.extend(bytes(max(0, record.number - len(content))))
            del content[record.number :]
        elif operation == "s":
            self.sync(record, path)
        elif operation == "r":
            target = Path(record.data.decode()).relative_to(root)
            self.parent(target).now[target.name] = self.parent(path).now.pop(path.name)
        elif operation == "m":
            self.parent(path).now[path.name] = Folder()
        else:  # removed
            del self.parent(path).now[path.name]

    def open(self, record: Record, path: Path) -> None:
        """Create a file if it does not exist, and empty it if the record says so."""
        entries = self.parent(path).now
        found = entries.get(path.name)
        if not isinstance(found, File):
            found = entries[path.name] = File(bytearray())
        self.by_inode[record.inode] = found
        if record.number:
            del found.now[:]

    def sync(self, record: Record, path: Path) -> None:
        """Make a file's content, or a folder's entries, safe."""
        node = self.by_inode.get(record.inode)
        if node is not None and path.parts:
            self.rename_unrecorded(node, path)
        if node is None or (path.parts and path.name in self.parent(path).now):
            found = self.find(path)
            if isinstance(found, Folder):
                found.safe = dict(found.now)
                return
            node = found
        node.safe = bytes(node.now)

    def rename_unrecorded(self, node: File, path: Path) -> None:
        """Give a file its name if it was renamed unseen, as libraries do that do without libc."""
        entries = self.parent(path).now
        if path.name not in entries:
            old = next(name for name, entry in entries.items() if entry is node)
            entries[path.name] = entries.pop(old)


def load(folder: Path) -> Folder:
    """Return a folder whose content is all safe."""
    node = Folder()
    for path in folder.iterdir():
        node.now[path.name] = (
            load(path) if path.is_dir() else File(bytearray(path.read_bytes()), path.read_bytes())
        )
    node.safe = dict(node.now)
    return node


def cut_power(
    before: Path,
    records: list[Record],
    *,
    recorded_at: Path,
    after: Path,
    survives: float,
    draw: random.Random,
) -> None:
    """Write to `after` what a disk holds after these operations and a power cut.

    Each content and each entry that was not synced survives with the probability `survives`.
    """
    disk = Disk(before)
    for record in records:
        disk.apply(record, root=recorded_at)
    store(disk.root, after, survives=survives, draw=draw)


def store(node: Folder, folder: Path, *, survives: float, draw: random.Random) -> None:
    """Write what is left of a folder."""
    folder.mkdir(exist_ok=True)
    for name in sorted(node.now.keys() | node.safe.keys()):
        entry = node.now.get(name) if draw.random() < survives else node.safe.get(name)
        if isinstance(entry, Folder):
            store(entry, folder / name, survives=survives, draw=draw)
        elif entry is not None:
            content = bytes(entry.now) if draw.random() < survives else entry.safe
            (folder / name).write_bytes(content)
