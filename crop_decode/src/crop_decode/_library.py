"""Load the C library through ctypes, which releases the interpreter lock during each call."""

import ctypes
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent / "libcrop_decode.so"
ABI_VERSION = 3
"""CROP_DECODE_VERSION of the C sources that this Python code was written for."""
MESSAGE_BYTES = 160
MAX_OUTPUT_SIDE = 16384
MAX_PIXELS = 178956970
STATUS = ("ok", "corrupt", "unsupported", "box", "too large", "memory", "index", "file")
"""Names of the statuses that C functions return; 0 is "ok"."""
_ARGUMENTS = {
    "crop_decode_info": 4,
    "crop_decode_pixels": 12,
    "crop_decode_resize": 10,
    "crop_decode_resize_indexed": 14,
    "crop_decode_resize_stored": 14,
    "crop_decode_resize_stored_pixels": 11,
    "crop_decode_batch": 14,
    "crop_decode_resize_pixels": 9,
    "crop_decode_transcode": 8,
    "crop_decode_build_index": 6,
}


def load(path: Path) -> ctypes.CDLL:
    """Load the library. Raises ImportError when it is missing, unreadable, or built from other sources."""
    again = "install crop_decode again with `pip install ./crop_decode`"
    try:
        library = ctypes.CDLL(str(path))
        library.crop_decode_version.restype = ctypes.c_int64
        version = library.crop_decode_version()
        if version != ABI_VERSION:
            raise ImportError(
                f"{path}: version {version}, but this package needs version {ABI_VERSION}; {again}",
                path=str(path),
            )
        for name, count in _ARGUMENTS.items():
            getattr(library, name).argtypes = [ctypes.c_int64] * count
            getattr(library, name).restype = ctypes.c_int64
        library.crop_decode_isa.restype, library.crop_decode_trusted.restype = ctypes.c_char_p, ctypes.c_int64
        library.crop_decode_free.argtypes, library.crop_decode_free.restype = [ctypes.c_int64], None
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path}: cannot be loaded ({error}); {again}", path=str(path)) from error
    return library


library = load(LIBRARY)


def function(name: str) -> ctypes._CFuncPtr:
    """A function of csrc/crop_decode.h, for numba: arguments and result are int64, pointers are addresses.

    Example:
        decode = crop_decode.function("crop_decode_resize")     # numba compiles calls of ctypes functions
        flags = Decoding(resize="fused").flags

        @numba.njit(nogil=True)
        def crop(source, out, size, top, left, height, width, flip, flags):
            jpeg, pixels = source.ctypes.data, out.ctypes.data
            return decode(jpeg, source.size, pixels, size, top, left, height, width, flip, flags)
    """
    return getattr(library, name)
