"""What a cubin says of its kernels: an ELF file with registers, shared memory and stack in NVIDIA's `.nv.info` sections."""

import struct
from typing import NamedTuple

FRAME_SIZE, REGISTERS, MOST_THREADS = 0x11, 0x2F, 0x05  # attributes of .nv.info
RESERVED = 1024  # bytes of shared memory that CUDA has for itself from sm_90 on


class Kernel(NamedTuple):
    """Registers a thread; bytes of static shared memory; bytes of stack, where spills go; most threads of a block."""

    registers: int
    shared: int
    stack: int
    threads: int


def read(cubin):
    """The kernels of a cubin by name."""
    assert cubin[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", cubin, 18) == (190,)
    (table,), (count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<2H", cubin, 60)
    headers = [struct.unpack_from("<2I4Q2I2Q", cubin, table + 64 * i) for i in range(count)]
    texts = headers[names][4]
    titles = [_text(cubin, texts + header[0]) for header in headers]
    body = {title: cubin[h[4] : h[4] + h[5]] for title, h in zip(titles, headers, strict=True) if h[1] != 8}
    symbols = body[".symtab"]
    of_symbol = [
        titles[index] if index < count else ""
        for index in (struct.unpack_from("<H", symbols, at + 6)[0] for at in range(0, len(symbols), 24))
    ]
    found = {}
    for title in titles:
        if title.startswith(".text."):
            name = title.removeprefix(".text.")
            shared = [h[5] for t, h in zip(titles, headers, strict=True) if t == f".nv.shared.{name}"]
            about = {MOST_THREADS: (1024,)} | dict(_attributes(body.get(f".nv.info.{name}", b"")))
            for attribute, (symbol, value) in _attributes(body[".nv.info"], (FRAME_SIZE, REGISTERS)):
                if of_symbol[symbol] == title:
                    about[attribute] = (value,)
            reserved = RESERVED if max(shared, default=0) >= RESERVED else 0
            found[name] = Kernel(
                about[REGISTERS][0], sum(shared) - reserved, about[FRAME_SIZE][0], about[MOST_THREADS][0]
            )
    return found


def _text(data, at):
    return data[at : data.index(b"\0", at)].decode()


def _attributes(section, wanted=None):
    at = 0
    while at + 4 <= len(section):
        form, attribute, length = struct.unpack_from("<2BH", section, at)
        length = length if form == 4 else 0  # the others have their value in these two bytes
        if (length >= 4 and wanted is None) or attribute in (wanted or ()):
            yield attribute, struct.unpack_from(f"<{length // 4}I", section, at + 4)
        at += 4 + length
