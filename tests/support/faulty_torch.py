"""PyTorch files written by hand: what is broken in them, and what would run if their pickles were trusted."""
# ruff: noqa: E501 (lines of one thing each)

from __future__ import annotations

import io
import zipfile

import numpy as np

# Good models, small enough to be made anew for each test.


def zipped(program: bytes, **entries: bytes) -> bytes:
    """A torch file whose pickle is `program`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, raw in entries.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", raw)
    return out.getvalue()


def state_dict(
    count: int = 4, offset: int = 0, shape: str = "(I4\nt", strides: str = "(I1\nt", key: str = "0"
) -> bytes:
    """A pickle, written by hand, of {"w": a tensor over storage `key` of `count` floats}."""
    storage = f"(Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{count}\ntQ"
    return f"(dVw\nctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{shape}{strides}I00\nccollections\nOrderedDict\n(tRtRs.".encode()


ATTACK = "touch PWNED"
PICKLES = {
    "os.system": f"cposix\nsystem\n(V{ATTACK}\ntR.",
    "subprocess": f"csubprocess\nPopen\n((lV{ATTACK}\natR.",
    "eval": "cbuiltins\neval\n(V__import__('os').system('touch PWNED')\ntR.",
    "getattr chain": "cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(VPWNED\ntR.",
    "torch.load inside": "ctorch\nload\n(VPWNED\ntR.",
    "inside a state dict": f"(dVw\ncposix\nsystem\n(V{ATTACK}\ntRs.",
    "runpy": "crunpy\nrun_path\n(VPWNED.py\ntR.",
    "dotted name": f"ctorch\n_utils.os.system\n(V{ATTACK}\ntR.",
}
FLOATS = np.ones(4, "<f4").tobytes()

TORCH: dict[str, bytes] = {
    **{f"pickle: {name}": zipped(program.encode(), _0=FLOATS) for name, program in PICKLES.items()},
    "pickle empty": zipped(b""),
    "pickle cut": zipped(state_dict()[:-30], _0=FLOATS),
    "pickle of a number": zipped(b"I5\n."),
    "pickle recursive": zipped(b"(lp0\ng0\na."),
    "pickle too deep": zipped(b"(" * 200_000 + b"."),
    "pickle bomb": zipped(b"(lp0\n" + b"".join(b"(g%d\ng%d\nlp%d\n" % (i, i, i + 1) for i in range(40)) + b"."),
    "pickle memo of 2^31": zipped(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "pickle long of 2 GB": zipped(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "no storage": zipped(state_dict()),
    "storage too short": zipped(state_dict(count=100), _0=FLOATS),
    "offset beyond": zipped(state_dict(offset=9), _0=FLOATS),
    "stride beyond": zipped(state_dict(strides="(I1000000\nt"), _0=FLOATS),
    "shape of 2^62": zipped(state_dict(shape="(I4611686018427387904\nt"), _0=FLOATS),
    "shape that no storage backs": zipped(state_dict(shape="(I1000000\nI1000000\nt", strides="(I0\nI0\nt"), _0=FLOATS),
    "shape as text": zipped(state_dict(shape="(Vx\nt"), _0=FLOATS),
    "shape a number": zipped(state_dict(shape="I4\n"), _0=FLOATS),
    "storage key above": zipped(state_dict(key="../../../etc/passwd"), _0=FLOATS),
    "zip cut": zipped(state_dict(), _0=FLOATS)[:-20],
    "zip of nothing else": b"PK\x03\x04" + b"archive/data.pkl" + bytes(600),
    "old format, attack": bytes.fromhex("80028a0a6cfc9c46f9206aa85019") + b"." + PICKLES["os.system"].encode(),
}
