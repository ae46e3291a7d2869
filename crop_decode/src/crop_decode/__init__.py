"""Decode only the part of a JPEG that a crop needs, then resize and flip it, in C.

    from crop_decode import decode_jpeg

    pixels = decode_jpeg(data, roi=(top, left, height, width), size=224)

The pixels equal a full decode, a crop and a resize, bit for bit. C code runs without Python's global lock,
so threads decode in parallel. See README.md for the options.
"""

from crop_decode._api import (
    EXACT,
    BatchResult,
    DecodeError,
    Decoding,
    JpegInfo,
    add_restarts,
    build_index,
    decode_addresses,
    decode_jpeg,
    decode_jpegs,
    decode_stream,
    describe,
    jpeg_info,
    resize_pixels,
)
from crop_decode._library import ABI_VERSION, LIBRARY, MAX_OUTPUT_SIDE, STATUS, function

__version__ = "0.1.0"
__all__ = [
    "ABI_VERSION",
    "EXACT",
    "LIBRARY",
    "MAX_OUTPUT_SIDE",
    "STATUS",
    "BatchResult",
    "DecodeError",
    "Decoding",
    "JpegInfo",
    "add_restarts",
    "build_index",
    "decode_addresses",
    "decode_jpeg",
    "decode_jpegs",
    "decode_stream",
    "describe",
    "function",
    "jpeg_info",
    "resize_pixels",
]
