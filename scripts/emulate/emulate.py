#!/usr/bin/env python3
"""Runs a program of this project on an emulated Sapphire Rapids: AVX-512, VNNI, BF16 and AMX, on any x86-64 Linux.

    pip install bochscpu-python numpy
    cargo test --release --test suite --no-run
    scripts/emulate/emulate.py target/release/deps/suite-... kernels:: --test-threads=1

The processor is that of the Bochs emulator; AMX, which the package leaves out, is done here, after Intel's manual (SDM, volume
2). The program runs on the bare processor: its system calls end in an instruction that the emulator reports, and are answered
here, as far as a test of kernels makes any. There is one thread: to start another one fails, which thread pools must bear.
"""

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time

PAGE = 4096
MEMORY = 2 << 30
# The first pages of memory; addresses are physical ones.
PML4, PDPT, SYSTEM_CALL, INVALID_OPCODE, GDT, IDT, TSS = (PAGE * n for n in range(1, 8))
EXCEPTION_STACK, STACK, FIRST_FREE = 0x1_0000, 0x800_0000, 0x800_0000
# x87, SSE, AVX, and the three states of AVX-512.
XCR0 = 0x7 | 0xE0
CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR = 0x08, 0x10, 0x18


class Memory:
    """The machine's, mapped to itself."""

    def __init__(self):
        self.bytes = mmap.mmap(-1, MEMORY)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        for page in range(0, MEMORY, PAGE):
            bochscpu.memory.page_insert(page, base + page)
        present, writable, user, large = 1, 2, 4, 0x80
        self.write(PML4, struct.pack("<Q", PDPT | present | writable | user))
        for gib in range(MEMORY >> 30):
            self.write(PDPT + 8 * gib, struct.pack("<Q", gib << 30 | present | writable | user | large))
        self.free = FIRST_FREE

    def write(self, at, data):
        self.bytes[at : at + len(data)] = bytes(data)

    def read(self, at, size):
        return self.bytes[at : at + size]

    def string(self, at):
        return self.bytes[at : self.bytes.find(b"\0", at)].decode()

    def reserve(self, size):
        at = self.free
        self.free += (size + PAGE - 1) // PAGE * PAGE
        assert self.free <= MEMORY, "out of memory"
        return at

    def load(self, path):
        """Maps an ELF file; returns its entry, its program headers' address, size and number, and its interpreter."""
        with open(path, "rb") as file:
            data = file.read()
        entry, headers = struct.unpack_from("<QQ", data, 24)
        size, count = struct.unpack_from("<HH", data, 54)
        parts = [struct.unpack_from("<IIQQQQQQ", data, headers + i * size) for i in range(count)]
        LOAD, INTERPRETER = 1, 3
        end = max(address + length for kind, _, _, address, _, _, length, _ in parts if kind == LOAD)
        base, interpreter = self.reserve(end), None
        for kind, _, offset, address, _, length, _, _ in parts:
            if kind == LOAD:
                self.write(base + address, data[offset : offset + length])
            elif kind == INTERPRETER:
                interpreter = data[offset : offset + length].rstrip(b"\0").decode()
        return base, base + entry, (base + headers, size, count), interpreter


class Tiles:
    """AMX: tile registers, and the instructions that use them."""

    def __init__(self, memory):
        self.memory = memory
        self.rows = self.row_bytes = None
        self.tiles = [bytes(1024)] * 8

    def execute(self, code, registers):
        """Does the instruction, whose bytes these are; returns its length, or None if it is not one of AMX."""
        if code[0] != 0xC4 or code[1] & 0x1F != 2 or code[2] & 0x84:
            return None
        extend = [8 * (~code[1] >> bit & 1) for bit in (7, 6, 5)]  # of reg, index, base
        prefix, third, opcode, modrm = code[2] & 3, ~code[2] >> 3 & 15, code[3], code[4]
        mode, reg, rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
        length, address, stride = 5, None, 0
        if mode != 3:
            if rm == 4:
                index, base = (code[5] >> 3 & 7) + extend[1], (code[5] & 7) + extend[2]
                length += 1
                address = registers[base]
                if index != 4:
                    stride = registers[index] << (code[5] >> 6)
            else:
                assert not (mode == 0 and rm == 5), "relative to the instruction pointer"
                address = registers[rm + extend[2]]
            if mode == 1:
                address += struct.unpack_from("b", code, length)[0]
            elif mode == 2:
                address += struct.unpack_from("<i", code, length)[0]
            length += {0: 0, 1: 1, 2: 4}[mode]
        match opcode, prefix, mode == 3:
            case 0x49, 0, False:
                self.configure(self.memory.read(address, 64))
            case 0x49, 0, True:
                self.rows = self.row_bytes = None
            case 0x49, 3, True:
                self.tiles[reg] = bytes(1024)
            case 0x4B, 3, False:
                rows = [self.memory.read(address + i * stride, self.row_bytes[reg]) for i in range(self.rows[reg])]
                self.tiles[reg] = b"".join(row.ljust(64, b"\0") for row in rows).ljust(1024, b"\0")
            case 0x4B, 2, False:
                for i in range(self.rows[reg]):
                    self.memory.write(address + i * stride, self.tiles[reg][64 * i :][: self.row_bytes[reg]])
            case 0x5C, 2, True:
                self.multiply_bf16(reg, rm, third)
            case _:
                return None
        return length

    def configure(self, operand):
        assert operand[0] == 1 and not any(operand[1:16]) and not any(operand[32:48]), "LDTILECFG's reserved bytes"
        self.row_bytes = struct.unpack_from("<8H", operand, 16)
        self.rows = tuple(operand[48:56])
        assert max(self.row_bytes) <= 64 and max(self.rows) <= 16
        self.tiles = [bytes(1024)] * 8

    def multiply_bf16(self, sums, a, b):
        """TDPBF16PS: sums[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1], for all k one after the other."""

        def wide(tile):
            halves = numpy.frombuffer(self.tiles[tile], "<u2").astype("<u4") << 16
            return halves.view("<f4").reshape(16, 16, 2)

        assert self.row_bytes[a] == 4 * self.rows[b], "tiles do not fit each other"
        result = numpy.frombuffer(self.tiles[sums], "<f4").reshape(16, 16).copy()
        a, b = wide(a), wide(b)
        with numpy.errstate(all="ignore"):
            for k in range(16):
                for half in range(2):
                    result += a[:, k, half, None] * b[None, k, :, half]
        self.tiles[sums] = result.tobytes()


class Process:
    def __init__(self, arguments):
        self.status = None
        self.memory = memory = Memory()
        self.tiles = Tiles(memory)
        base, entry, headers, interpreter = memory.load(arguments[0])
        PHDR, PHENT, PHNUM, PAGESZ, BASE, ENTRY, SECURE, RANDOM = 3, 4, 5, 6, 7, 9, 23, 25
        auxiliary = {PHDR: headers[0], PHENT: headers[1], PHNUM: headers[2], PAGESZ: PAGE, ENTRY: entry, SECURE: 0}
        if interpreter:
            auxiliary[BASE], entry, *_ = memory.load(interpreter)
        stack, pointers = STACK, []
        environment = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("PROPTEST_", "RUST_"))]
        for text in arguments + environment:
            data = text.encode() + b"\0"
            stack -= len(data)
            memory.write(stack, data)
            pointers.append(stack)
        stack = auxiliary[RANDOM] = (stack - 16) & ~15
        memory.write(stack, os.urandom(16))
        words = [len(arguments), *pointers[: len(arguments)], 0, *pointers[len(arguments) :], 0]
        words += [word for pair in auxiliary.items() for word in pair] + [0, 0]
        stack = (stack - 8 * len(words)) & ~15
        memory.write(stack, struct.pack(f"<{len(words)}Q", *words))
        self.entry, self.stack = entry, stack

    def run(self):
        memory = self.memory
        # The emulator reports WBINVD, in whose place a system would do its work.
        memory.write(SYSTEM_CALL, b"\x0f\x09\xff\xe1")  # wbinvd; jmp rcx
        memory.write(INVALID_OPCODE, b"\x0f\x09\x48\xcf")  # wbinvd; iretq
        code, data = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
        tss = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x8B << 40
        memory.write(GDT, struct.pack("<5Q", 0, code, data, tss, 0))
        memory.write(TSS, struct.pack("<36xQ", EXCEPTION_STACK).ljust(104, b"\0"))  # IST1
        gate, first_stack = 0x8E, 1
        handler = struct.pack("<HHBBHIxxxx", INVALID_OPCODE, CODE_SELECTOR, first_stack, gate, 0, 0)
        memory.write(IDT + 6 * 16, handler)

        state = bochscpu.State()
        bochscpu.cpu.set_long_mode(state)
        sse, fs_and_gs, xsave = 3 << 9, 1 << 16, 1 << 18
        state.cr4 |= sse | fs_and_gs | xsave
        state.cr3, state.xcr0 = PML4, XCR0
        state.rflags, state.mxcsr, state.mxcsr_mask = 2, 0x1F80, 0xFFFF
        state.lstar, state.star = SYSTEM_CALL, CODE_SELECTOR << 32
        for name, selector, attributes, base, limit in [
            ("cs", CODE_SELECTOR, 0xA09B, 0, 0xFFFFFFFF),
            *[(name, DATA_SELECTOR, 0xC093, 0, 0xFFFFFFFF) for name in ("ss", "ds", "es", "fs", "gs")],
            ("tr", TSS_SELECTOR, 0x8B, TSS, 0x67),
        ]:
            segment = bochscpu.Segment()
            segment.present, segment.selector, segment.attr = True, selector, attributes
            segment.base, segment.limit = base, limit
            setattr(state, name, segment)
        for name, base, size in [("gdtr", GDT, 40), ("idtr", IDT, 256)]:
            table = bochscpu.GlobalSegment()
            table.base, table.limit = base, size - 1
            setattr(state, name, table)
        state.rip, state.rsp = self.entry, self.stack

        self.session = bochscpu.Session()
        self.session.missing_page_handler = lambda address: sys.exit(f"no memory at {address:#x}")
        self.session.cpu.state = state
        hook = bochscpu.Hook()
        hook.cache_cntrl = self.system
        hook.exception = self.exception
        self.session.run([hook])
        return self.status

    def exception(self, session, _, vector, code):
        INVALID = 6
        if vector != INVALID:
            print(f"exception {vector}, code {code:#x}, at {session.cpu.rip:#x}", file=sys.stderr)
            session.stop()

    def system(self, session, *_):
        if INVALID_OPCODE <= session.cpu.rip < INVALID_OPCODE + PAGE:
            self.invalid_opcode(session)
        else:
            self.system_call(session)

    def invalid_opcode(self, session):
        cpu = session.cpu
        at, _, _, stack = struct.unpack("<4Q", self.memory.read(cpu.rsp, 32))
        names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
        registers = [stack if name == "rsp" else getattr(cpu, name) for name in names]
        code = self.memory.read(at, 16)
        length = self.tiles.execute(code, registers)
        if length is None:
            print(f"unknown instruction {code.hex()} at {at:#x}", file=sys.stderr)
            return session.stop()
        self.memory.write(cpu.rsp, struct.pack("<Q", at + length))

    def system_call(self, session):
        cpu = session.cpu
        handler = CALLS.get(cpu.rax)
        try:
            result = handler(self, cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9) if handler else -errno.ENOSYS
        except OSError as error:
            result = -error.errno
        cpu.rax = (result or 0) & (1 << 64) - 1

    def read(self, fd, to, size, *_):
        data = os.read(fd, size)
        self.memory.write(to, data)
        return len(data)

    def pread64(self, fd, to, size, offset, *_):
        data = os.pread(fd, size, offset)
        self.memory.write(to, data)
        return len(data)

    def write(self, fd, data, size, *_):
        return os.write(fd, self.memory.read(data, size))

    def writev(self, fd, vectors, count, *_):
        return sum(self.write(fd, *v) for v in struct.iter_unpack("<QQ", self.memory.read(vectors, 16 * count)))

    def openat(self, _, path, flags, mode, *__):
        return os.open(self.memory.string(path), flags, mode)

    def close(self, fd, *_):
        os.close(fd)

    def fstat(self, fd, to, *_):
        self.stat(os.fstat(fd), to)

    def newfstatat(self, directory, path, to, *_):
        path = self.memory.string(path)
        self.stat(os.stat(path) if path else os.fstat(directory), to)

    def stat(self, s, to):
        fields = struct.pack("<QQQIIIIQQQQ", s.st_dev, s.st_ino, s.st_nlink, s.st_mode, 0, 0, 0, 0, s.st_size, PAGE, 0)
        self.memory.write(to, fields.ljust(144, b"\0"))

    def mmap(self, address, size, _, flags, fd, offset):
        FIXED, ANONYMOUS = 0x10, 0x20
        if not flags & FIXED:
            address = self.memory.reserve(size)
        self.memory.write(address, bytes((size + PAGE - 1) // PAGE * PAGE))
        if not flags & ANONYMOUS:
            self.memory.write(address, os.pread(fd, size, offset))
        return address

    def arch_prctl(self, code, value, *_):
        SET_FS, REQ_XCOMP_PERM, XTILEDATA = 0x1002, 0x1023, 18
        if code == SET_FS:
            segment = self.session.cpu.fs
            segment.base = value
            self.session.cpu.fs = segment
            return 0
        return 0 if (code, value) == (REQ_XCOMP_PERM, XTILEDATA) else -errno.EINVAL

    def sched_getaffinity(self, _, size, to, *__):
        self.memory.write(to, struct.pack("<Q", 1))
        return 8

    def getrandom(self, to, size, *_):
        self.memory.write(to, os.urandom(size))
        return size

    def clock_gettime(self, clock, to, *_):
        self.memory.write(to, struct.pack("<QQ", *divmod(time.clock_gettime_ns(clock), 10**9)))

    def clone(self, *_):
        return -errno.EAGAIN

    def nothing(self, *_):
        return 0

    def exit_group(self, status, *_):
        self.status = status
        self.session.stop()


# By Linux's numbers. Those that do nothing change protection or signals, or wait.
CALLS = {
    0: Process.read,
    1: Process.write,
    3: Process.close,
    5: Process.fstat,
    9: Process.mmap,
    17: Process.pread64,
    20: Process.writev,
    56: Process.clone,
    158: Process.arch_prctl,
    204: Process.sched_getaffinity,
    228: Process.clock_gettime,
    231: Process.exit_group,
    257: Process.openat,
    262: Process.newfstatat,
    318: Process.getrandom,
    435: Process.clone,
} | dict.fromkeys([7, 10, 11, 12, 13, 14, 28, 131, 202, 218, 273], Process.nothing)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if "model.so" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as directory:
            library = os.path.join(directory, "model.so")
            source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model.c")
            subprocess.check_call(["cc", "-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o", library, source])
            sys.exit(subprocess.call([sys.executable, *sys.argv], env=os.environ | {"LD_PRELOAD": library}))
    global bochscpu, numpy
    import bochscpu
    import bochscpu.cpu
    import bochscpu.memory
    import numpy

    status = Process(sys.argv[1:]).run()
    sys.exit("the processor stopped" if status is None else status)


if __name__ == "__main__":
    main()
