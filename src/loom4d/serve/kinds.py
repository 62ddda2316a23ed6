"""What an upload claims to be, by its first bytes; its name says nothing."""

from __future__ import annotations

from collections.abc import Callable

PICTURES = {
    ".png": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    ".jpg": lambda head: head.startswith(b"\xff\xd8\xff"),
    ".webp": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
    ".gif": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    ".avif": lambda head: head[4:12] in (b"ftypavif", b"ftypavis"),
    ".bmp": lambda head: head.startswith(b"BM"),
    ".tif": lambda head: head.startswith((b"II*\0", b"MM\0*")),
}
FILMS = {
    ".mp4": lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"),
    ".mkv": lambda head: head.startswith(b"\x1aE\xdf\xa3"),  # WebM too
    ".avi": lambda head: head.startswith(b"RIFF") and head[8:12] == b"AVI ",
}
MODELS = {".glb": lambda head: head.startswith(b"glTF")}
TESTS: dict[str, Callable[[bytes], bool]] = {**PICTURES, **FILMS, **MODELS}
HEAD = 16  # bytes that tell
TAKEN = "PNG, JPEG, WebP, GIF, AVIF, BMP and TIFF pictures, MP4, WebM, MKV and AVI clips, and GLB models"


def suffix_of(head: bytes) -> str | None:
    """The suffix that belongs to a file that begins with `head`, or None where it is nothing that can be taken."""
    return next((suffix for suffix, test in TESTS.items() if test(head)), None)
