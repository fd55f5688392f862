"""What an upload is, by its first bytes. Neither its name nor what the client says of it counts.

Nothing else gets to the decoder: playlists and scripts, which would have it open other files, have no such bytes.
"""

HEAD = 400
"""Bytes that decide."""
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
STARTS = {
    b"\x1aE\xdf\xa3": ".mkv",
    b"\x00\x00\x01\xba": ".mpg",
    b"\x00\x00\x01\xb3": ".mpg",
    b"FLV\x01": ".flv",
    b"OggS": ".ogv",
    b"0&\xb2u\x8ef\xcf\x11": ".wmv",
    b"YUV4MPEG2 ": ".y4m",
    b"GIF8": ".gif",
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}
NAMES = "MP4, MOV, MKV, WebM, AVI, MPEG, TS, FLV, OGV, WMV, Y4M, GIF, JPEG, PNG, WebP, BMP, TIFF"


def suffix_of(head: bytes) -> str | None:
    """The suffix that a file with these first bytes should have; None if it is neither a video nor a still.

    Example:
        >>> suffix_of(b"RIFF....WEBPVP8 "), suffix_of(b"#EXTM3U")
        ('.webp', None)
    """
    if head[:4] == b"RIFF":
        return {b"AVI ": ".avi", b"WEBP": ".webp"}.get(head[8:12])
    if head[4:8] in BOXES:
        return ".mp4"
    for start, size, suffix in ((0, 188, ".ts"), (4, 192, ".m2ts")):
        if head[start : start + 2 * size : size] == b"GG":
            return suffix
    return next((suffix for start, suffix in STARTS.items() if head.startswith(start)), None)
